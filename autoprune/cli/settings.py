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
from autoprune.run.documents import warn_elsewhere
from autoprune.trust import consent
from autoprune.validation import first_problem, warn_renamed

PANELS: dict[str, tuple[str, ...]] = {
    panel: tuple(name for name, setting in SETTINGS.items() if setting.panel == panel)
    for panel in dict.fromkeys(setting.panel for setting in SETTINGS.values())
}
"""The fields under each heading of ``--help``."""

PASSED = ("config", "flags", "words")
"""Arguments of a command that are no options of its own; see `with_config`."""

ANY_DATA = ("--data", "DATA")
"""In a next command, where it isn't known which data."""

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
    *panels: str,
    but: Iterable[str] = (),
    useless: Iterable[str] = (),
    defaults: Mapping[str, Any] | None = None,
    described: Mapping[str, str] | None = None,
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of panels and fields, as its argument ``config``.

    A command with an argument ``flags`` also gets the names of all options that the user gave on the command
    line, to refuse those that would do nothing. With an argument ``words`` it gets the options of fields as
    they were given, {field: words}, and ``--config`` under ``config``, to repeat them in a next command.

    Args:
        *panels: keys of `PANELS`, or single fields.
        but: fields of these panels that the command does not use.
        useless: others, which an earlier version took and ignored; the help omits them.
        defaults: fields with another default in this command.
        described: what the help says of the default of a field or a panel, where the command itself chooses
            it, such as ``the run's``.
    """
    fields = [name for item in panels for name in PANELS.get(item, (item,)) if name not in set(but)]
    command_defaults, ignored = dict(defaults or {}), frozenset(useless)
    shown = {name: text for item, text in (described or {}).items() for name in PANELS.get(item, (item,))}

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command, eval_str=True)
        own = {name: item for name, item in signature.parameters.items() if name not in PASSED}

        @functools.wraps(command)
        def run(**given: Any) -> None:
            values = {name: joined(given.pop(name)) for name in fields}
            file = given.pop("config")
            config = _read(values, file, command_defaults)
            flags = {name for name, value in given.items() if value != own[name].default}
            flags |= {name for name, value in values.items() if value is not None}
            refuse_useless(flags, ignored, "in this command; omit it")
            if "flags" in signature.parameters:
                given["flags"] = flags
            if "words" in signature.parameters:
                given["words"] = _words({"config": file, **values})
            command(config=config, **given)

        def option(name: str) -> inspect.Parameter:
            return _option(name, command_defaults, name in ignored, shown.get(name))

        config_file = inspect.Parameter(
            "config", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=ConfigFile
        )
        keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own.values()]
        parameters = [*keywords, config_file, *(option(name) for name in fields)]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def flag(name: str) -> str:
    """The option of a field: ``budget_gflops`` is ``--budget-gflops``."""
    return "--" + name.replace("_", "-")


def data_flags(config: Config) -> list[object]:
    """The options that name the same data for a next command, of those that can be on a command line."""
    words: list[object] = []
    if "data" in config.model_fields_set and isinstance(config.data, Path):
        words += ["--data", config.data]
    if config.val_fraction is not None:
        words += ["--val-fraction", config.val_fraction]
    return words


def refuse_useless(flags: Iterable[str], names: Iterable[str], reason: str) -> None:
    """Refuses options that would do nothing, rather than ignore them.

    Args:
        flags: names of the options that were given.
        names: those that would do nothing.
        reason: why, to follow ``--data does nothing``.

    Raises:
        ConfigError: one of them was given.
    """
    if useless := sorted(set(names).intersection(flags)):
        raise ConfigError(f"{flag(useless[0])} does nothing {reason}")


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


def _words(values: Mapping[str, Any]) -> dict[str, list[object]]:
    """The options that were given, as words of a command line, by name; ``None`` is none."""
    words: dict[str, list[object]] = {}
    for name, value in values.items():
        if isinstance(value, bool):
            words[name] = [flag(name if value else f"no_{name}")]
        elif value is not None:
            words[name] = [flag(name), value]
    return words


def joined(value: Any) -> Any:
    """The values of an option that may be given several times, as if they had been given in one."""
    if not isinstance(value, list | tuple):
        return value
    return ",".join(value) if value else None


def _option(
    name: str, defaults: Mapping[str, Any], hidden: bool, described: str | None = None
) -> inspect.Parameter:
    """One field as a keyword parameter that typer turns into an option, ``None`` by default."""
    field = Config.model_fields[name]
    spelled = f"{flag(name)}/--no-{name.replace('_', '-')}" if field.annotation is bool else flag(name)
    option = typer.Option(
        spelled,
        metavar=None if field.annotation is bool else _metavar(field),
        help=_help(field, defaults.get(name, field.get_default()), described),
        show_default=False,
        hidden=hidden,
        rich_help_panel=SETTINGS[name].panel,
    )
    kind: Any = bool if field.annotation is bool else list[str] if _is_list(field) else str
    annotation: Any = Annotated[kind | None, option]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def _help(field: FieldInfo, default: Any, described: str | None) -> str:
    """The description, the choices and the default of a field: in the command's own words, or the value."""
    text = field.description or ""
    parts = [text if described is None else text.partition("; default: ")[0]]
    if choices := _choices(field):
        several = get_origin(_types(field)[0]) is tuple
        parts.append(f"{'one or more' if several else 'one'} of {', '.join(choices)}")
    if described is not None:
        parts.append(f"default: {described}")
    elif default not in (None, (), {}):
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


def _is_list(field: FieldInfo) -> bool:
    """Whether a field has any number of values; height and width are two."""
    kind = _types(field)[0]
    return get_origin(kind) is tuple and Ellipsis in get_args(kind)


def _metavar(field: FieldInfo) -> str:
    kind = _types(field)[0]
    if get_origin(kind) is tuple:
        return "A,B,…" if _is_list(field) else "HxW"
    named = {int: "N", float: "X", Path: "PATH", str: "TEXT"}
    if kind == dict[str, int]:
        return "NAME=LABEL,…"
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
        raise ConfigError(first_problem(error, Config, "the settings", spelled=flag)) from error
    config = make_config(**given) if file is None else load_config(file, **given)
    if file is not None and flags.get("out", "") is None:  # where the command has the option
        warn_elsewhere(file, config.out)
    consent(config.model)
    unset = {name: value for name, value in defaults.items() if name not in config.model_fields_set}
    # not by `make_config`: a null in the file is a value that the user gave
    return Config.model_validate({name: getattr(config, name) for name in config.model_fields_set} | unset)


def parse_size(text: str, option: str) -> tuple[int, int]:
    """Reads height x width in pixels.

    Raises:
        ConfigError: the text is something else; the message names the option.
    """
    sides = text.lower().replace(",", "x").split("x")
    if len(sides) != 2 or not all(re.fullmatch(r" *[1-9][0-9]{0,6} *", side) for side in sides):
        raise ConfigError(f"{option} must be height x width in pixels such as 800x1344, not {text!r}")
    return int(sides[0]), int(sides[1])


def _each_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object, whose reader would take the last of several values of a key."""
    mapping = dict(pairs)
    names = [name for name, _ in pairs]
    if twice := next((name for name in mapping if names.count(name) > 1), None):
        raise ValueError(f"{twice!r} is given twice")
    return mapping


def _parse(name: str, value: Any) -> Any:
    """Reads the fields that are written differently as flags and in YAML."""
    if name == "model_arguments":
        try:
            arguments = json.loads(value, object_pairs_hook=_each_once)
            problem = "" if isinstance(arguments, dict) else "it is no mapping"
        except (ValueError, RecursionError) as error:
            problem = getattr(error, "msg", str(error))
        if problem:
            raise ConfigError(
                f"--model-arguments must be JSON such as '{{\"min_size\": 192}}', not {value!r}: {problem}"
            )
        return arguments
    if name == "input_size":
        return list(parse_size(value, "--input-size"))
    return value
