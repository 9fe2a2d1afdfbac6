"""The lines of YOLO's label files: a class with a box, a polygon or key points."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from autoprune.errors import DataError
from autoprune.layouts.text_files import read_lines
from autoprune.records.convention import CENTER, LEAST_BOXES, Convention

EDGE = 0.01
"""How far a coordinate may lie beyond the image, in fractions of it, as Ultralytics allows."""
FORMAT = "each is the number of a class, x and y of the center, width and height in fractions of the image"


class Row(NamedTuple):
    """A line of a label file: its class, and its box as x, y of the corner, width and height in fractions.

    ``written`` is the box as the line has it, where that is one; ``repeats`` the same line before.
    """

    line: int
    label: int
    box: tuple[float, float, float, float]
    problem: str | None
    written: tuple[float, float, float, float] | None = None
    repeats: int | None = None


class LabelReader:
    """Reads the label files of a split.

    Args:
        source: what the split is read from, for messages.
        names: of the classes, by their numbers.
        keypoints: whether key points follow each box.

    Attributes:
        annotations: the boxes, as COCO has them.
        skipped: the lines that are none, each with its place and the reason.
    """

    def __init__(self, source: Path, names: Mapping[int, str], keypoints: bool) -> None:
        self.annotations: list[dict[str, Any]] = []
        self.skipped: list[str] = []
        self._source, self._names, self._keypoints = source, names, keypoints
        self._convention = Convention(CENTER, ("a line's box looks", "YOLO"))
        self._labels: Counter[int] = Counter()
        self._first_of: dict[int, str] = {}
        self._bad: list[tuple[str, str]] = []

    def read(self, file: Path, image: int, size: tuple[int, int]) -> str | None:
        """Reads the label file of an image; returns what is wrong with the whole of it.

        Args:
            file: the label file.
            image: the image's number.
            size: its height and width.
        """
        try:
            lines = read_lines(file)
        except DataError as error:
            return str(error)
        height, width = size
        for row in rows(lines, self._keypoints):
            place = f"{file}:{row.line}"
            if row.problem is None:
                self._labels[row.label] += 1
                self._first_of.setdefault(row.label, place)
            problem = row.problem or unknown(row, self._names)
            if problem is not None:
                self.skipped.append(f"{place}: {problem}")
                if row.repeats is None:
                    self._bad.append((f"{place}: {problem}", lines[row.line - 1]))
                continue
            if row.written is not None and min(size) > 1:
                x, y, *sides = row.written
                scaled = (x * width, y * height, sides[0] * width, sides[1] * height)
                self._convention.add(scaled, {"width": width, "height": height}, place)
            x, y, box_width, box_height = row.box
            self.annotations.append(
                {
                    "id": place,
                    "image_id": image,
                    "category_id": row.label + 1,
                    "bbox": [x * width, y * height, box_width * width, box_height * height],
                    "iscrowd": 0,
                }
            )
        return None

    def refuse(self) -> None:
        """Refuses labels that are written in another way than YOLO's throughout.

        Raises:
            DataError: names the first such line.
        """
        if self._bad and not self.annotations:
            place, line = self._bad[0]
            separators = "; separate them by blanks" if {",", ";"} & {*line} else ""
            raise DataError(
                f"{self._source}: none of the {len(self._bad)} lines of boxes can be used (first {place}); "
                f"{FORMAT}{separators}"
            )
        self._convention.refuse(self._source)
        count, beyond = len(self._names), len(self._names)
        from_zero = sorted(self._names) == list(range(count))
        one_more = {*self._labels} <= set(range(1, count + 1)) and self._labels[beyond]
        if from_zero and one_more and self._labels.total() >= LEAST_BOXES:
            raise DataError(
                f"{self._source}: the lines' classes look counted from 1, as {beyond} is one "
                f"({self._first_of[beyond]}) and 0 is none; YOLO counts the {count} from 0: subtract 1"
            )


def rows(lines: Iterable[str], keypoints: bool) -> Iterable[Row]:
    """The lines of a file, and what is wrong with those that are none."""
    first: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(lines, 1):
        words = tuple(line.split())
        if words in first:
            yield Row(number, 0, (0, 0, 0, 0), f"it repeats line {first[words]}", repeats=first[words])
            continue
        first[words] = number
        yield row_of(number, words[:5] if keypoints else words)


def row_of(number: int, words: tuple[str, ...]) -> Row:
    """A class with x and y of the center, width and height, or with the corners of a polygon."""

    def bad(problem: str) -> Row:
        return Row(number, 0, (0, 0, 0, 0), problem)

    try:
        values = [float(word) for word in words]
        if any("_" in word or not word.isascii() for word in words):  # which Python alone takes for numbers
            raise ValueError
    except ValueError:
        return bad(f"{' '.join(words):.60} are not numbers")
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        return bad(f"it has {len(values)} numbers, not a class with a box (5) or a polygon (7, 9, …)")
    if not all(map(math.isfinite, values)) or values[0] != int(values[0]):
        return bad(f"{' '.join(words):.60} are not a class and finite coordinates")
    if min(values[1:]) < -EDGE or max(values[1:]) > 1 + EDGE:
        return bad(f"{' '.join(words):.60} has coordinates that are not fractions of the image, from 0 to 1")
    if len(values) == 5:
        label, x, y, width, height = values
        corner = (x - width / 2, y - height / 2, width, height)
        return Row(number, int(label), corner, None, (x, y, width, height))
    xs, ys = values[1::2], values[2::2]
    return Row(number, int(values[0]), (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)), None)


def unknown(row: Row, names: Mapping[int, str]) -> str | None:
    """What is wrong with a class that has no name."""
    if row.label in names:
        return None
    return f"its class {row.label} has no name; there are {len(names)}, from {min(names)} to {max(names)}"


def holds_boxes(file: Path) -> bool:
    """Whether a text file has a line that is a box, or nothing, as for an image without objects."""
    try:
        lines = read_lines(file)
    except DataError:
        return False
    return not lines or any(row_of(1, tuple(line.split()[:5])).problem is None for line in lines)
