"""Tells from all boxes of a file or folder that they are written in another convention than its layout's."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from autoprune.errors import DataError
from autoprune.records.fields import shown

LEAST_BOXES = 5
"""Fewer tell nothing."""
MOST_BOXES = 50_000
"""More tell nothing new."""
SLACK = 0.05
"""The part of an image's side that boxes may reach beyond it: annotation tools do not always clip."""
BEYOND = 1 / 3
"""The least part of the boxes that is without area or reaches beyond the image where others are meant."""
NEAR_SLACK, NEAR_BEYOND = 0.01, 0.02
"""The same between a corner and a center: only boxes at the border of the image tell them apart."""
REACH = 3
"""Boxes that come to each of two opposite borders, within `SLACK`, where the center is told from a corner.

Boxes that all lie at one border, and are not clipped there, would otherwise fit in the other way, too.
"""
UNFIT = 0.01
"""The part of the boxes that need not fit into the image in the other convention."""

Four = tuple[float, float, float, float]


class Form(NamedTuple):
    """What four numbers stand for: in words, and the corners (x1, y1, x2, y2) that they give."""

    words: str
    corners: Callable[[Four], Four]


CORNERS = Form("[x1, y1, x2, y2]", lambda box: box)
TOP_LEFT = Form("[x, y, width, height]", lambda box: (box[0], box[1], box[0] + box[2], box[1] + box[3]))
CENTER = Form(
    "[x center, y center, width, height]",
    lambda box: (
        box[0] - box[2] / 2,
        box[1] - box[3] / 2,
        box[0] + box[2] / 2,
        box[1] + box[3] / 2,
    ),
)
FORMS = (CORNERS, TOP_LEFT, CENTER)
REMEDIES = {
    (TOP_LEFT, CORNERS): "write x2 - x1 and y2 - y1",
    (TOP_LEFT, CENTER): "subtract half of width and height from x and y",
    (CENTER, CORNERS): "write the center, x2 - x1 and y2 - y1",
    (CENTER, TOP_LEFT): "add half of width and height to x and y",
    (CORNERS, TOP_LEFT): "write x + width and y + height for the second corner",
    (CORNERS, CENTER): "write the corners, half of width and height away from the center",
}
"""What to write where a layout has the first and the numbers are the second."""


class Convention:
    """Counts which boxes make more sense in another convention.

    Args:
        own: what the layout's four numbers stand for, in pixels.
        what: the place of the numbers and the layout, for messages.
    """

    def __init__(self, own: Form = TOP_LEFT, what: tuple[str, str] = ("bbox looks", "COCO")) -> None:
        self._own, self._what = own, what
        self._count = self._fractions = self._far = self._near = 0
        self._unfit = {form: 0 for form in FORMS if form is not own}
        self._at_borders = {form: [0, 0, 0, 0] for form in self._unfit}
        self._first: dict[str, str] = {}

    def add(self, box: Four, image: Mapping[str, float], where: str) -> None:
        """Counts a box as it is written.

        Args:
            box: its four numbers, in pixels.
            image: its ``width`` and ``height``.
            where: names the annotation.
        """
        if self._count >= MOST_BOXES:
            return
        width, height = image["width"], image["height"]
        self._count += 1
        if min(box) >= -SLACK and max(box) <= 1 + SLACK and min(width, height) > 2:
            self._fractions += 1
            self._first.setdefault("fraction", f"{where}: {_rounded(box)}")
        x1, y1, x2, y2 = self._own.corners(box)
        beyond = max(-x1 / width, x2 / width - 1, -y1 / height, y2 / height - 1)
        is_far = beyond > SLACK or x2 <= x1 or y2 <= y1
        self._far += is_far
        self._near += is_far or beyond > NEAR_SLACK
        if is_far or beyond > NEAR_SLACK:
            kind = "far" if is_far else "near"
            self._first.setdefault(kind, f"{where}: {_rounded(box)} in {width}x{height}")
        for form in self._unfit:
            x1, y1, x2, y2 = form.corners(box)
            if not (-1 <= x1 < x2 <= width + 1 and -1 <= y1 < y2 <= height + 1):
                self._unfit[form] += 1  # by more than the rounding to a pixel
            distances = (x1 / width, 1 - x2 / width, y1 / height, 1 - y2 / height)
            for side, distance in enumerate(distances):
                self._at_borders[form][side] += distance <= SLACK

    def refuse(self, file: Path) -> None:
        """Refuses a file or folder whose boxes are not in its layout's convention.

        Raises:
            DataError: names the file and the first such annotation.
        """
        if self._count < LEAST_BOXES:
            return
        if self._fractions == self._count and self._own is not CENTER:  # fractions are YOLO's own
            raise DataError(
                f"{file}: boxes look like fractions of the image, not pixels ({self._first['fraction']}); "
                "multiply by width and height"
            )
        looks, layout = self._what
        for form, unfit in self._unfit.items():
            is_near = {form, self._own} == {TOP_LEFT, CENTER}
            beyond, least = (self._near, NEAR_BEYOND) if is_near else (self._far, BEYOND)
            if beyond < self._count * least or unfit >= self._count * UNFIT:
                continue
            left, right, top, bottom = self._at_borders[form]
            if is_near and (beyond < LEAST_BOXES or max(min(left, right), min(top, bottom)) < REACH):
                continue
            first = self._first.get("far", "") or self._first["near"]
            raise DataError(
                f"{file}: {looks} like {form.words} ({first}); {layout} has {self._own.words}: "
                f"{REMEDIES[self._own, form]}"
            )


def _rounded(box: Four) -> str:
    return shown([round(number, 4) for number in box])
