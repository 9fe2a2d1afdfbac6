"""Reads the text files of a data set: lists of images, names of classes, boxes."""

import codecs
import re
from pathlib import Path

from autoprune.errors import DataError
from autoprune.files import what_is_no_file

MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # begins as UTF-16 does
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
"""The byte order marks that a text may begin with, and what they say that it is."""
NUMBERED = re.compile(r"(\d{1,6})\s*:\s*([^:]*[^:\s])", re.ASCII)
"""A line ``1: name``."""
COUNTED = re.compile(r"\d+\s*[,;\t].+|.+[,;\t]\s*\d+", re.ASCII)
"""A line with a number beside the name, as in a table."""
OTHER_FORMATS = ("[", "{", "item {", "item{", "<")


def read_text(file: Path) -> str:
    """A text in UTF-8, or in UTF-16 or UTF-32 with a byte order mark.

    Raises:
        DataError: it can't be read, or is in another encoding.
    """
    if (problem := what_is_no_file(file)) is not None:
        raise DataError(f"cannot read {file}: {problem}; check --data (YAML: data)")
    try:
        data = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; check --data (YAML: data)") from error
    encoding = next((name for mark, name in MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(
            f"{file} is no {encoding.removesuffix('-sig').upper()} text: byte {error.start} is "
            f"0x{error.object[error.start]:02x}; save it as UTF-8"
        ) from error
    if "\0" in text:
        raise DataError(f"{file} is no UTF-8 text: byte {text.index(chr(0))} is 0x00; save it as UTF-8")
    return text


def read_lines(file: Path) -> list[str]:
    """The lines of a text file that are not blank, without blanks at their ends; errors as `read_text`."""
    return [text for line in read_text(file).splitlines() if (text := line.strip())]


def numbered(lines: list[str]) -> dict[int, str] | None:
    """The names by their numbers, where every line is ``1: name``; ``None`` for others."""
    matches = [NUMBERED.fullmatch(line) for line in lines]
    pairs = [(int(match[1]), match[2]) for match in matches if match is not None]
    return dict(pairs) if pairs and len(pairs) == len(lines) and len({*dict(pairs)}) == len(lines) else None


def read_class_list(file: Path) -> list[str]:
    """The names of the classes 0, 1, … of a text file: one a line, also as ``0: name``.

    Raises:
        DataError: it can't be read, or a line is none: then the others would have the wrong numbers.
    """
    lines = [line.strip() for line in read_text(file).rstrip().splitlines()]
    for number, line in enumerate(lines, 1):
        if not line:
            raise DataError(
                f"{file}: line {number} is blank, where class {number - 1} would be; name it or remove it"
            )
        if line.startswith("#"):
            raise DataError(
                f"{file}: line {number} is a comment, and would be class {number - 1}; remove it, as "
                "each line is the name of a class"
            )
    if (by_number := numbered(lines)) is not None:
        if sorted(by_number) != list(range(len(lines))):
            raise DataError(
                f"{file} numbers the classes {min(by_number)} to {max(by_number)}; YOLO counts them from 0, "
                "each once: write one name a line, in the order of the numbers in the label files"
            )
        return [by_number[number] for number in range(len(lines))]
    if lines and (lines[0].startswith(OTHER_FORMATS) or all(map(COUNTED.fullmatch, lines))):
        raise DataError(
            f"{file}: {lines[0][:60]!r} is no name of a class; write one name a line, and no more"
        )
    return lines
