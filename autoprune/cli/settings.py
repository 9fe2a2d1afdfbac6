"""Fields of `Config` as command line options: the same names, descriptions and defaults as in YAML."""

import functools
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from autoprune import config as config_module
from autoprune.config import SETTINGS, Config, load_config, make_config
from autoprune.errors import ConfigError
from autoprune.trust import consent
from autoprune.validation import first_problem, warn_renamed

PANELS: dict[str, tuple[str, ...]] = {
    panel: tuple(name for name, setting in SETTINGS.items() if setting.panel == panel)
    for panel in dict.fromkeys(setting.panel for setting in SETTINGS.values())
}
"""The fields under each heading of ``--help``."""

RENAMED_FLAGS: dict[str, dict[str, str]] = {"space": {"--measure-steps": "--measure-multiples"}}
"""Per command, the renamed ones of its own flags, old → new; `config.RENAMED` lists the fields."""

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="YAML file of settings; flags override it. `autoprune schema` lists its keys.",
        rich_help_panel="Settings",
    ),
]


def with_config(
    *panels: str, but: Iterable[str] = (), defaults: Mapping[str, Any] | None = None
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of panels and fields, as its argument ``config``.

    Args:
        *panels: keys of `PANELS`, or single fields.
        but: fields of these panels that the command does not use.
        defaults: fields with another default in this command.
    """
    fields = [name for item in panels for name in PANELS.get(item, (item,)) if name not in set(but)]
    command_defaults = dict(defaults or {})

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        others = [parameter for name, parameter in signature.parameters.items() if name != "config"]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            config = _read({name: given.pop(name) for name in fields}, given.pop("config"), command_defaults)
            command(config=config, **given)

        file = inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile
        )
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in others]
        parameters = [*keywords, file, *(_option(name, command_defaults) for name in fields)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def flag(name: str) -> str:
    """The option of a field: ``budget_gflops`` is ``--budget-gflops``."""
    return "--" + name.replace("_", "-")


def with_new_flags(arguments: Sequence[str]) -> list[str]:
    """Replaces the old spellings of flags by the new ones, with a warning for each.

    Args:
        arguments: the command and its arguments.
    """
    command = arguments[0] if arguments else ""
    renamed = dict(RENAMED_FLAGS.get(command, {}))
    for old, new in config_module.RENAMED.items():
        renamed |= {flag(old): flag(new), flag(f"no_{old}"): flag(f"no_{new}")}
    result = []
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name in renamed:
            warn_renamed(name, renamed[name])
            argument = renamed[name] + equals + value
        result.append(argument)
    return result


def _option(name: str, defaults: Mapping[str, Any]) -> inspect.Parameter:
    """One field as a keyword parameter that typer turns into an option, ``None`` by default."""
    field = Config.model_fields[name]
    spelled = f"{flag(name)}/--no-{name.replace('_', '-')}" if field.annotation is bool else flag(name)
    option = typer.Option(
        spelled,
        metavar=None if field.annotation is bool else _metavar(field),
        help=_help(field, defaults.get(name, field.get_default())),
        show_default=False,
        rich_help_panel=SETTINGS[name].panel,
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
        ConfigError: a value is invalid; the message names the flag, or the file and the field.
    """
    given = {name: _parse(name, value) for name, value in flags.items() if value is not None}
    try:
        Config.model_validate(given)
    except ValidationError as error:
        raise ConfigError(first_problem(error, list(flags), "the settings", spelled=flag)) from error
    config = make_config(**given) if file is None else load_config(file, **given)
    consent(config.model)
    unset = {name: value for name, value in defaults.items() if name not in config.model_fields_set}
    return make_config(**{name: getattr(config, name) for name in config.model_fields_set}, **unset)


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Reads height x width in pixels.

    Raises:
        ConfigError: the text is something else; the message names the option.
    """
    sides = text.lower().replace(",", "x").split("x")
    if len(sides) != 2 or not all(re.fullmatch(r" *[1-9][0-9]{0,6} *", side) for side in sides):
        raise ConfigError(f"{option} must be height x width in pixels such as 800x1344, not {text!r}")
    return int(sides[0]), int(sides[1])


def _parse(name: str, value: Any) -> Any:
    """Reads the fields that are written differently as flags and in YAML."""
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
