"""Tells from all boxes of a file that they are written in another convention than COCO's."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import DataError
from autoprune.records.fields import shown

LEAST_BOXES = 5
"""Fewer tell nothing."""
SLACK = 0.05
"""The part of an image's side that boxes may reach beyond it: annotation tools do not always clip."""
BEYOND = 1 / 3
"""The least part of the boxes that reaches beyond the image where corners are taken for width and height."""
UNFIT = 0.01
"""The part of the boxes that need not fit into the image as corners."""

Box = tuple[float, float, float, float]


class Convention:
    """Counts which boxes (x, y, width, height in pixels) make more sense in another convention."""

    def __init__(self) -> None:
        self._count = self._fractions = self._beyond = self._unfit = 0
        self._first: dict[str, str] = {}

    def add(self, box: Box, image: Mapping[str, Any], where: str) -> None:
        """Counts the box of an annotation as it is written; ``where`` names the annotation."""
        x, y, last_x, last_y = box
        width, height = image["width"], image["height"]
        self._count += 1
        if min(box) >= -SLACK and max(box) <= 1 + SLACK and min(width, height) > 2:
            self._fractions += 1
            self._first.setdefault("fraction", f"{where}: {shown(list(box))}")
        if x + last_x > width * (1 + SLACK) or y + last_y > height * (1 + SLACK):
            self._beyond += 1
            self._first.setdefault("beyond", f"{where}: {shown(list(box))} in {width}x{height}")
        if not (-1 <= x < last_x <= width + 1 and -1 <= y < last_y <= height + 1):
            self._unfit += 1  # as corners, which may be rounded by a pixel

    def refuse(self, file: Path) -> None:
        """Refuses a file whose boxes are not in COCO's convention.

        Raises:
            DataError: names the file and the first such annotation.
        """
        if self._count < LEAST_BOXES:
            return
        if self._fractions == self._count:
            raise DataError(
                f"{file}: boxes look like fractions of the image, not pixels ({self._first['fraction']}); "
                "multiply by width and height"
            )
        if self._beyond >= self._count * BEYOND and self._unfit < self._count * UNFIT:
            raise DataError(
                f"{file}: bbox looks like [x1, y1, x2, y2] ({self._first['beyond']}); COCO has "
                "[x, y, width, height]: write x2 - x1 and y2 - y1"
            )
