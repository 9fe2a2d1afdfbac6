"""Reads a JSON file; where it is none, one line says what it is and what to do."""

import json
import re
import sys
from pathlib import Path
from typing import Any

from autoprune.errors import DataError
from autoprune.records.fields import printable, shown

PACKED = {
    b"\x1f\x8b": "gzip",
    b"PK\x03\x04": "zip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
}
"""How compressed files start."""
CUT_VALUE = re.compile(r"-?|t(ru?)?|f(a(ls?)?)?|n(ul?)?|-?I\w*|Na?|\.|[eE][+-]?")
"""What the reader stops at where a file ends within a word or a number."""
CUT_ESCAPE = re.compile(r'[^"]{0,5}')


def read_json(file: Path) -> Any:
    """The content of a JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark.

    Raises:
        DataError: it can't be read, is compressed, cut off, in another encoding, not JSON, or repeats a key.
    """
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; check --data (YAML: data)") from error
    for start, name in PACKED.items():
        if data.startswith(start):
            raise DataError(f"{file} is not in COCO format: it is a {name} file; unpack it")
    if not data:
        raise DataError(f"{file} is not in COCO format: it is empty; copy it again")
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding, "surrogatepass")
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not in COCO format: {_undecoded(data, error)}") from error
    try:
        return json.loads(text, object_pairs_hook=_each_key_once)
    except _TwiceError as error:
        raise DataError(
            f"{file}: a mapping has a key twice, {error}; remove one of the two in the file"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not in COCO format{_problem(text, error)}") from error


class _TwiceError(Exception):
    """A mapping has a key twice, which JSON's reader would take the last of."""


def _each_key_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                break
            seen.add(key)
        first = next(iter(mapping))
        place = "" if first == key else f", in that with {shown(first)}: {shown(mapping[first])}"
        raise _TwiceError(f"{shown(key)}{place}")
    return mapping


def _undecoded(data: bytes, error: UnicodeDecodeError) -> str:
    # of a file with a byte order mark, the decoder counts from behind it
    place = error.start + len(data) - len(error.object)
    if "end of data" in error.reason or "truncated" in error.reason:
        return f"it ends at byte {len(data)}, within a character; copy it again"
    return f"byte {place} (0x{data[place]:02x}) is no {error.encoding.upper()}; re-save as UTF-8"


def _problem(text: str, error: ValueError | RecursionError) -> str:
    """What is wrong with a text that is not JSON, and what to do."""
    if isinstance(error, RecursionError):
        return ": its lists or mappings are nested too deeply; export it again"
    if not isinstance(error, json.JSONDecodeError):
        longest = sys.get_int_max_str_digits()
        match = re.search(rf"(?<![^\[:,\s-])\d{{{longest + 1},}}", text)
        digits = f"{len(match[0])} digits at character {match.start()}" if match else "thousands of digits"
        return f": a whole number has {digits}; fix it in the file"
    if _is_cut_off(text, error):
        return f": it is cut off, it ends at character {len(text)}; copy it again"
    if error.msg == "Extra data" and text[: error.pos].rstrip(" \t\r").endswith("\n"):
        return (
            f": it holds several JSON texts, the second in line {error.lineno}, as JSON Lines; COCO has one "
            "for the file: export it as that"
        )
    problem = printable(f"{type(error).__name__}: {error}")[:200]
    return f" ({problem}); fix it in the file, or export it again"


def _is_cut_off(text: str, error: json.JSONDecodeError) -> bool:
    if error.msg == "Extra data" or not text.lstrip().startswith(("{", "[")):
        return False
    rest = text[error.pos :].strip(" \t\r\n\0")
    if error.msg.startswith("Unterminated string") or not rest:
        return True
    if error.msg.startswith("Illegal trailing comma"):
        return rest == ","
    if "escape" in error.msg:
        return CUT_ESCAPE.fullmatch(rest) is not None
    return CUT_VALUE.fullmatch(rest) is not None
