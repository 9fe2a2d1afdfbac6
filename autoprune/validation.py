"""What all inputs share: strict models of YAML files, renamed keys, arguments, problems said in one line."""

import difflib
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator

from autoprune.errors import AutopruneError, ConfigError
from autoprune.passwords import hide

SHOWN = 80
"""Characters of a value that a message shows."""

_PLAIN = {  # where pydantic would name classes of Python
    "path_type": "Input should be a path",
    "tuple_type": "Input should be a list",
    "dict_type": "Input should be a mapping of `key: value` lines",
}


class Strict(BaseModel):
    """A frozen model that refuses unknown keys, and true or false where a number belongs."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_a_number(cls, value: Any, field: ValidationInfo) -> Any:
        assert field.field_name is not None
        types = _types_within(cls.model_fields[field.field_name].annotation)
        values = value if isinstance(value, list | tuple) else [value]
        if isinstance(value, Mapping) and not any(isinstance(kind, type(BaseModel)) for kind in types):
            values = list(value.values())
        if any(isinstance(each, bool) for each in values) and not types & {bool, Any}:
            raise ValueError("must not be true or false (YAML reads on, off, yes and no as these, too)")
        return value


def _types_within(annotation: Any) -> set[Any]:
    """A type and all in its arguments: ``tuple[int, ...] | None`` holds ``int``."""
    return {annotation}.union(*(_types_within(part) for part in get_args(annotation)))


def warn_renamed(old: str, new: str, where: str = "") -> None:
    """Warns, in one line on standard error, that a flag or key has a new name."""
    place = f"{where}: " if where else ""
    warnings.warn(f"{place}{old} is now {new}; the old spelling goes with the next version", stacklevel=2)


def with_new_keys(values: Mapping[str, Any], renamed: Mapping[str, str], where: str) -> dict[str, Any]:
    """Replaces the old spellings of keys by the new ones, with a warning for each.

    Args:
        values: what the user wrote.
        renamed: old key → new key.
        where: the file, for the message.

    Raises:
        ConfigError: a key is given in both spellings.
    """
    result = dict(values)
    for old in [key for key in values if key in renamed]:
        new = renamed[old]
        if new in result:
            raise ConfigError(f"{where}: `{old}` is the old spelling of `{new}`; give only `{new}`")
        warn_renamed(f"`{old}`", f"`{new}`", where)
        result[new] = result.pop(old)
    return result


def first_problem(
    error: ValidationError,
    model: type[BaseModel] | None,
    where: str,
    spelled: Callable[[str], str] | None = None,
) -> str:
    """Describes the first problem of a validation error in one line; unknown keys come before missing.

    Args:
        error: of a model.
        model: that model; ``None`` for a shape that takes any key.
        where: the file, or what else was read.
        spelled: how the user wrote a field, where that says the place, too: ``--steps``.
    """
    problems = error.errors()
    problem = next((each for each in problems if each["type"] == "extra_forbidden"), problems[0])
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        keys = _keys_at(model, problem["loc"][:-1])
        near = difflib.get_close_matches(str(problem["loc"][-1]), keys, n=3) or keys
        return f"unknown key `{name}` in {where}; valid keys: {', '.join(near)}"
    message = _PLAIN.get(problem["type"], problem["msg"].removeprefix("Value error, "))
    if problem["type"] in ("model_type", "model_attributes_type"):
        message = f"Input should hold the keys {', '.join(_keys_at(model, problem['loc']))}"
    if name and problem["type"] != "missing":  # without a name it is all that was given, too much for a line
        message += f" (got {brief(problem['input'])})"
    if name and spelled is not None:
        return f"{spelled(str(problem['loc'][0]))}: {message}"
    return f"{where}: `{name}`: {message}" if name else f"{where}: {message}"


def brief(value: object) -> str:
    """How a message shows what was given: its `repr`, without passwords, of which a long one is cut."""
    text = hide(repr(value))
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 1]}…"


def _keys_at(model: type[BaseModel] | None, place: Sequence[int | str]) -> list[str]:
    """The keys that a model takes at a place in it."""
    kinds: set[Any] = {model}
    for part in place:  # a number, or the key of a mapping, leads to what `_types_within` has found already
        models = [kind for kind in kinds if isinstance(kind, type(BaseModel))]
        fields = [kind.model_fields[part].annotation for kind in models if part in kind.model_fields]
        extras = [kind.__annotations__.get("__pydantic_extra__") for kind in models]
        if within := fields or [extra for extra in extras if extra is not None]:
            kinds = set().union(*map(_types_within, within))
    return [name for kind in kinds if isinstance(kind, type(BaseModel)) for name in kind.model_fields]


def check_kind(
    argument: str,
    value: Any,
    kinds: type | tuple[type, ...],
    instead: str,
    error: type[AutopruneError] = ConfigError,
) -> None:
    """Refuses an argument of the public functions that is of another kind.

    Args:
        argument: its name, for the message.
        value: what was given.
        kinds: what it may be an instance of.
        instead: what to give, for the message.
        error: what to raise.

    Raises:
        AutopruneError: it is no instance of ``kinds``.
    """
    if isinstance(value, kinds):
        return
    name = value.__name__ if isinstance(value, type) else type(value).__name__
    article = "the class" if isinstance(value, type) else "an" if name[0] in "aeiouAEIOU" else "a"
    raise error(f"{argument} is {'None' if value is None else f'{article} {name}'}; give {instead}")


def as_path(argument: str, value: Any, instead: str, error: type[AutopruneError] = ConfigError) -> Path:
    """The path that was given as an argument of a public function; arguments and errors as `check_kind`."""
    check_kind(argument, value, (str, os.PathLike), instead, error)
    if not str(value) or "\0" in str(value):
        raise error(f"{argument} is {str(value)!r}, which names no file; give {instead}")
    return Path(value)
