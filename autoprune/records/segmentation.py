"""The box around a segmentation, for annotations that have no box of their own."""

from collections.abc import Mapping, Sequence
from typing import Any

from autoprune.records.fields import numbers_of, whole

LARGEST_SIDE = 2**20
"""Pixels of the largest mask that is read."""

Box = tuple[float, float, float, float]


def box_around(segmentation: Any) -> Box | None:
    """The box (x, y, width, height) in pixels around a COCO segmentation; ``None`` where it can't be read.

    Args:
        segmentation: polygons as lists ``[x1, y1, x2, y2, …]``, one such list, lists of ``[x, y]``, or a mask
            as run lengths, compressed or not.
    """
    if isinstance(segmentation, Mapping):
        return _box_around_mask(segmentation)
    if not isinstance(segmentation, list) or not segmentation:
        return None
    if not any(isinstance(part, list) for part in segmentation):
        return _box_around_points([segmentation])
    if all(isinstance(part, list) and part and isinstance(part[0], list) for part in segmentation):
        segmentation = [point for part in segmentation for point in part]  # polygons of [x, y]
    return _box_around_points(segmentation)


def _box_around_points(polygons: Sequence[Any]) -> Box | None:
    xs: list[float] = []
    ys: list[float] = []
    for polygon in polygons:
        numbers = numbers_of(polygon)
        if numbers is None or len(numbers) % 2:
            return None
        xs += numbers[::2]
        ys += numbers[1::2]
    if not xs:
        return None
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


def _box_around_mask(mask: Mapping[str, Any]) -> Box | None:
    """The box of run lengths: of background and object, alternating, down the columns."""
    size, counts = mask.get("size"), mask.get("counts")
    sides = [whole(side) for side in size] if isinstance(size, list) else []
    if len(sides) != 2 or sides[0] is None or sides[1] is None:
        return None
    height, width = sides[0], sides[1]
    if not (0 < height <= LARGEST_SIDE and 0 < width <= LARGEST_SIDE):
        return None
    runs = _decompressed(counts) if isinstance(counts, str) else _whole_runs(counts)
    if runs is None or min(runs, default=-1) < 0 or sum(runs) > height * width:
        return None
    columns: list[int] = []
    rows: list[int] = []
    end = 0
    for index, length in enumerate(runs):
        start, end = end, end + length
        if index % 2 == 0 or length == 0:
            continue
        last = end - 1
        columns += [start // height, last // height]
        # a run over the end of a column holds its last row and the first one of the next
        rows += [start % height, last % height] if start // height == last // height else [0, height - 1]
    if not columns:
        return None
    x, y = min(columns), min(rows)
    return float(x), float(y), float(max(columns) - x + 1), float(max(rows) - y + 1)


def _whole_runs(counts: Any) -> list[int] | None:
    if not isinstance(counts, list):
        return None
    read = [whole(count) for count in counts]
    runs = [count for count in read if count is not None]
    return runs if len(runs) == len(read) else None


def _decompressed(text: str) -> list[int] | None:
    """Run lengths of COCO's compressed text: five bits a character, and from the third on differences."""
    runs: list[int] = []
    value = shift = 0
    for character in text:
        bits = ord(character) - 48
        if not 0 <= bits < 64:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:  # more follows
            continue
        if bits & 0x10:  # negative
            value -= 1 << shift
        if len(runs) > 2:
            value += runs[-2]
        runs.append(value)
        value = shift = 0
    return runs if shift == 0 else None
