"""Reads single fields of annotation files: every writing that can mean one thing only.

Tools write numbers as texts (``"640"``) and floats (``1.0``), and -1, 0, null or an empty text for what is
not given. Each reader returns ``None`` where a field can't be read, or holds nothing.
"""

import json
import math
import re
from typing import Any

WHOLE_TEXT = re.compile(r"[+-]?(0|[1-9]\d*)(\.0*)?", re.ASCII)
NUMBER_TEXT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
NO_TEXTS = ("", "0", "0.0", "false", "f", "no", "n", "off", "none", "null", "nan", "-1")
YES_TEXTS = ("1", "1.0", "true", "t", "yes", "y", "on")
LARGEST_WHOLE = 2**53  # numpy and JSON readers of other languages hold larger ones inexactly
LONGEST_NUMBER = 400  # characters; Python refuses to read whole numbers of thousands of digits

Identity = int | str


def number(value: Any) -> float | None:
    """A finite number, also as a text."""
    if isinstance(value, str):
        text = value.strip()
        if len(text) > LONGEST_NUMBER or not NUMBER_TEXT.fullmatch(text):
            return None
        value = float(text)
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        result = float(value)
    except OverflowError:  # a whole number beyond the range of floats
        return None
    return result if math.isfinite(result) else None


def whole(value: Any) -> int | None:
    """A whole number, also as a float or a text."""
    read = number(value)
    return int(read) if read is not None and read.is_integer() and abs(read) <= LARGEST_WHOLE else None


def is_absent(value: Any) -> bool:
    """Whether a size or an area is not given: null, an empty text, NaN, -1 or 0, in any writing."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return True
    if isinstance(value, str) and value.strip().lower() in ("", "null", "none", "nan"):
        return True
    return number(value) in (0.0, -1.0)


def flag(value: Any) -> bool | None:
    """Whether a flag is set; one that is not given is not."""
    if value is None or isinstance(value, bool) or (isinstance(value, float) and math.isnan(value)):
        return value is True
    if isinstance(value, str):
        text = value.strip().lower()
        return False if text in NO_TEXTS else True if text in YES_TEXTS else None
    read = number(value)
    return False if read in (0.0, -1.0) else True if read == 1.0 else None


def identity(value: Any) -> Identity | None:
    """An id: a whole number in any writing, or a text such as a UUID or ``007``; ``None`` for no id."""
    if isinstance(value, str):
        text = value.strip()
        if not WHOLE_TEXT.fullmatch(text) or len(text) > LONGEST_NUMBER:
            return text or None
        return int(text.partition(".")[0])
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def box(value: Any) -> tuple[float, float, float, float] | None:
    """Four finite numbers: a list of numbers or texts, or a text of the four, such as ``"[1, 2, 3, 4]"``."""
    numbers = numbers_of(value)
    return (numbers[0], numbers[1], numbers[2], numbers[3]) if numbers and len(numbers) == 4 else None


def numbers_of(value: Any) -> list[float] | None:
    """A list of finite numbers, in the writings that `box` takes."""
    if isinstance(value, str):
        value = re.split(r"\s*,\s*|\s+", value.strip().strip("[]()").strip())
    if not isinstance(value, list | tuple):
        return None
    read = [number(each) for each in value]
    finite = [each for each in read if each is not None]
    return finite if len(finite) == len(read) else None


def is_absent_box(value: Any) -> bool:
    """Whether a box is not given: null, nothing, or only zeros or only -1."""
    if value is None or value in ("", "null", "none", [], "[]", {}):
        return True
    return box(value) in ((0.0,) * 4, (-1.0,) * 4)


def shown(value: Any, characters: int = 60) -> str:
    """A value of JSON for a message: in one line, as printable text, cut to a length."""
    try:
        text = json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError):
        text = repr(value)
    text = printable(text)
    return text if len(text) <= characters else text[: characters - 1] + "…"


def printable(text: str) -> str:
    """A text in one line that any terminal can show: line breaks and broken characters as escapes."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else repr(each)[1:-1] for each in text)
