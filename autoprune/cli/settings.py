"""Fields of `Config` as command line options: the same names, descriptions and defaults as in YAML."""

import functools
import inspect
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic.fields import FieldInfo

from autoprune.config import Config, load_config, make_config
from autoprune.errors import ConfigError

PANELS: dict[str, tuple[str, ...]] = {
    "Detector": ("model", "model_arguments", "num_classes", "weights", "input_size"),
    "Data": ("data", "image_cache_gib", "strict"),
    "Budget": ("budget_gflops", "budget_mparams", "budget_latency_ms", "latency_runtime", "objectives"),
    "Importance and space": ("criterion", "importance_images", "space"),
    "Search": (
        "out",
        "trials",
        "sampler",
        "warm_starts",
        "rungs",
        "rung_keep",
        "proxy_images",
        "confirm",
        "check_proxies",
        "storage",
        "track",
    ),
    "Engine": ("engine", "address", "workers", "cpus_per_trial", "gpus_per_trial"),
    "Training": (
        "steps",
        "batch_size",
        "learning_rate",
        "weight_decay",
        "warmup",
        "clip_norm",
        "norm",
        "ema_decay",
        "precision",
        "distill",
        "distill_weighting",
        "distill_logits",
        "regrow_rounds",
        "reconstruct_images",
        "recalibration_images",
    ),
    "Machine": ("device", "threads", "seed"),
}

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file of settings; flags win over it. Its keys are listed by `autoprune schema`.",
        rich_help_panel="Settings",
    ),
]


def with_config(
    *what: str, but: Iterable[str] = (), defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of panels and fields; they reach it as its argument ``config``.

    Args:
        *what: keys of `PANELS`, or single fields.
        but: fields of these panels that the command has no use for.
        defaults: fields that default to something else in this command.
    """
    fields = [name for item in what for name in PANELS.get(item, (item,)) if name not in set(but)]
    own_defaults = dict(defaults or {})

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = [parameter for name, parameter in signature.parameters.items() if name != "config"]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            config = _read({name: given.pop(name) for name in fields}, given.pop("config"), own_defaults)
            command(config=config, **given)

        file = inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile
        )
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
        parameters = [*keywords, file, *(_option(name, own_defaults) for name in fields)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def flag(name: str) -> str:
    """The option of a field: ``budget_gflops`` is ``--budget-gflops``."""
    return "--" + name.replace("_", "-")


def _option(name: str, defaults: Mapping[str, Any]) -> inspect.Parameter:
    """One field as a keyword parameter that typer turns into an option; ``None`` where it is not given."""
    field = Config.model_fields[name]
    panel = next(title for title, names in PANELS.items() if name in names)
    spelled = f"{flag(name)}/--no-{name.replace('_', '-')}" if field.annotation is bool else flag(name)
    option = typer.Option(
        spelled,
        metavar=None if field.annotation is bool else _metavar(field),
        help=_help(field, defaults.get(name, field.get_default())),
        show_default=False,
        rich_help_panel=panel,
    )
    annotation: Any = Annotated[(bool if field.annotation is bool else str) | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: FieldInfo, default: Any) -> str:
    """The description, the choices and the default of a field."""
    parts = [field.description or ""]
    if choices := _choices(field):
        parts.append(f"one of {', '.join(choices)}")
    if default not in (None, (), {}):
        shown = ",".join(map(str, default)) if isinstance(default, tuple) else default
        parts.append(
            "default: " + ({True: "on", False: "off"}[shown] if isinstance(shown, bool) else str(shown))
        )
    return "; ".join(parts)


def _types(field: FieldInfo) -> tuple[Any, ...]:
    """The alternatives of a field's annotation, without ``None``."""
    union = get_origin(field.annotation) in (Union, UnionType)
    kinds = get_args(field.annotation) if union else (field.annotation,)
    return tuple(kind for kind in kinds if kind is not type(None))


def _choices(field: FieldInfo) -> tuple[str, ...]:
    kind = _types(field)[0]
    if get_origin(kind) is tuple:
        kind = get_args(kind)[0]
    return get_args(kind) if get_origin(kind) is Literal else ()


def _metavar(field: FieldInfo) -> str:
    kind = _types(field)[0]
    if get_origin(kind) is tuple:
        return "HxW" if Ellipsis not in get_args(kind) else "A,B,…"
    named = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
    return "JSON" if get_origin(kind) is dict else named.get(kind, "NAME")


def _read(flags: dict[str, Any], file: Path | None, defaults: Mapping[str, Any]) -> Config:
    """Validates the flags over the YAML file over the command's own defaults.

    Raises:
        ConfigError: a value can't be used; the message names the field.
    """
    given = {name: _parse(name, value) for name, value in flags.items() if value is not None}
    config = make_config(**given) if file is None else load_config(file, **given)
    unset = {name: value for name, value in defaults.items() if name not in config.model_fields_set}
    return make_config(**{name: getattr(config, name) for name in config.model_fields_set}, **unset)


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Reads height x width in pixels.

    Raises:
        ConfigError: the text is something else; the message names the option.
    """
    sides = text.lower().replace(",", "x").split("x")
    if len(sides) != 2 or not all(side.strip().isdigit() and int(side) > 0 for side in sides):
        raise ConfigError(f"{option} must be height x width in pixels such as 800x1344, not {text!r}")
    return int(sides[0]), int(sides[1])


def _parse(name: str, value: Any) -> Any:
    """Reads the fields whose text differs from their YAML."""
    if name == "model_arguments":
        try:
            return json.loads(value)
        except json.JSONDecodeError as error:
            raise ConfigError(
                f"--model-arguments must be JSON such as '{{\"min_size\": 192}}', not {value!r}: {error.msg}"
            ) from error
    if name == "input_size":
        return list(parse_size(value, "--input-size"))
    return value
