"""Reads the YAML file of YOLO data: where its splits are, and the names of its classes."""

import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from autoprune.errors import ConfigError, DataError
from autoprune.files import read_yaml
from autoprune.layouts.source import Layout, Source, each_once, split_of
from autoprune.layouts.text_files import read_class_list
from autoprune.records.fields import shown, whole

YAML = (".yaml", ".yml")
ELSEWHERE = re.compile(r"/|\.\./|\w+:/")
"""How a path starts that is absolute, on any machine, or leads out of the folder, as Roboflow's do."""
MOST_CLASSES = 100_000
"""Without names; a larger number is a mistake."""


def is_data(file: Path) -> bool:
    """Whether a YAML file is one of YOLO data, and no settings of something else.

    Raises:
        ConfigError: it has YOLO's usual name, and is not YAML.
    """
    try:
        content = read_yaml(file)
    except ConfigError:
        if file.name.lower() == "data.yaml":
            raise
        return False
    keys = {*content} if isinstance(content, dict) else set()
    return bool({"names", "nc"} & keys or file.name.lower() == "data.yaml") and bool({"train", "val"} & keys)


def read_data(file: Path) -> dict[str, Any]:
    """The content of a YAML file.

    Raises:
        DataError: it is no mapping.
        ConfigError: it is not YAML.
    """
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise DataError(
            f"{file} is not a YAML file of a data set: it has no keys train, val and names; fix it"
        )
    return content


# paths


def yaml_layout(file: Path) -> Layout:
    """The splits of a YAML file, whose paths are taken as Ultralytics takes them.

    Raises:
        DataError: it names none, or a path that does not exist.
    """
    content = read_data(file)
    root = _root(file, content)
    sources: list[tuple[str, str, Source]] = []
    for key, value in content.items():
        split = split_of(key) if isinstance(key, str) else None
        if split is None or not value:
            continue
        paths = [_text(path, file, key) for path in (value if isinstance(value, list) else [value])]
        source = Source(file, tuple(_resolve(root, path, file, key) for path in paths), "yolo")
        sources.append((split, f"`{key}`", source))
    splits = each_once(sources, file)
    if not splits:
        raise DataError(f"{file} has none of the keys train, val and test; add them, with folders of images")
    return Layout("YOLO", file, splits)


def plain_path(text: str) -> str:
    """A path with slashes for backslashes, and of a `file:` URL its path."""
    text = text.replace("\\", "/")
    if text.lower().startswith("file:/"):
        text = "/" + unquote(text[len("file:") :]).lstrip("/")
    return text


def _text(value: Any, file: Path, key: str) -> str:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        several = "" if key == "path" else ", or a list of paths"
        raise DataError(f"{file}: `{key}` must be a path{several}, and has {_short(value)}; fix it")
    return str(value)


def _root(file: Path, content: Mapping[str, Any]) -> Path:
    """The folder that paths are relative to: `path`, or the file's own where there is no such folder."""
    given = Path(os.path.expanduser(_text(content.get("path") or "", file, "path")))
    candidates = (file.parent / given, file.parent / "datasets" / given, file.parent.parent / given, given)
    return next((path for path in candidates if os.path.isdir(path)), file.parent)


def _resolve(root: Path, text: str, file: Path, key: str) -> Path:
    """A folder of images or a text file of their paths.

    Raises:
        DataError: it does not exist.
    """
    text = os.path.expanduser(plain_path(text))
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    candidates = [root / text, file.parent / text]
    if ELSEWHERE.match(text):
        own = [place for place, part in enumerate(parts) if split_of(part)]  # no other split's images
        for base in (root, file.parent):
            candidates += [
                base.joinpath(*parts[first:]) for first in range((own or [len(parts) - 1])[-1] + 1)
            ]
    path = next((path for path in candidates if os.path.exists(path)), None)
    if path is None:
        named = text if len(text) <= 200 else f"{text[:199]}…"
        raise DataError(
            f"{file}: `{key}: {named}` does not exist below {root}; fix the path, or `path`, there"
        )
    return Path(os.path.normpath(path))


# names


def read_names(file: Path) -> dict[int, str]:
    """The names of the classes, by their number, of a YAML file or of a text file with one a line.

    Raises:
        DataError: they are no names, two are the same, or `nc` is not how many there are.
    """
    if file.suffix.lower() not in YAML:
        return _all_different(file, enumerate(read_class_list(file)))
    content = read_data(file)
    given, names = content.get("nc"), content.get("names")
    count = whole(given)
    if given is not None and (count is None or not 1 <= count <= MOST_CLASSES):
        raise DataError(
            f"{file}: `nc` must be the number of classes, from 1 to {MOST_CLASSES}, and is {_short(given)}; "
            "fix it"
        )
    if "names" not in content and count is not None:
        return {number: f"class_{number}" for number in range(count)}
    if not isinstance(names, list | dict):
        raise DataError(
            f"{file}: `names` must be a list, or `number: name`, and is {_short(names)}; fix it, as in "
            "`names: [circle, square]`"
        )
    entries = names.items() if isinstance(names, dict) else enumerate(names)
    known = _all_different(file, ((_class(key, file), _name(name, key, file)) for key, name in entries))
    if not known or (count is not None and count != len(known)):
        raise DataError(f"{file}: `names` has {len(known)} names, and `nc` is {count}; make them agree")
    return known


def _class(key: Any, file: Path) -> int:
    number = whole(key)
    if number is None or number < 0:
        raise DataError(
            f"{file}: `names` must be a list, or `number: name` with numbers from 0, and has the key "
            f"{_short(key)}; fix it"
        )
    return number


def _name(name: Any, key: Any, file: Path) -> str:
    place = f"{file}: the name of class {_short(key)} in `names`"
    if isinstance(name, list | dict):
        raise DataError(f"{place} must be a text, and is {_short(name)}; write one name for each class")
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise DataError(
            f"{place} is no text to YAML, but {_short(name)}; quote it, as in 'yes' or '2020-01-01'"
        )
    if not str(name).strip():
        raise DataError(f"{place} is blank; write a name")
    return str(name)


def _all_different(file: Path, names: Iterable[tuple[int, str]]) -> dict[int, str]:
    known: dict[int, str] = {}
    numbers: dict[str, int] = {}
    for number, name in names:
        if number in known:
            raise DataError(
                f"{file}: class {number} has two names, {shown(known[number])} and {shown(name)}; keep one"
            )
        if (other := numbers.setdefault(name.strip(), number)) != number:
            raise DataError(
                f"{file}: the classes {other} and {number} have the same name, {shown(name)}; rename one"
            )
        known[number] = name
    return known


def _short(value: Any) -> str:
    """A value for a message; aliases in YAML can make a list of a few lines one of gigabytes."""
    if isinstance(value, list | dict):
        kind = "a list" if isinstance(value, list) else "a mapping"
        return f"{kind} of {len(value)}"
    if isinstance(value, int) and value.bit_length() > 200:
        return "a number of more than 60 digits"
    return shown(value)
