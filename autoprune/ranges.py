"""Kept channels as text, such as ``0-5,8,11-63``; needs no torch, as workers and drivers of trials do not."""

from collections.abc import Iterable, Sequence
from itertools import pairwise


def to_ranges(indices: Sequence[int]) -> str:
    """Writes rising indices as ranges: ``[0, 1, 2, 5]`` is ``"0-2,5"``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def from_ranges(text: str) -> tuple[int, ...]:
    """Reads what `to_ranges` wrote.

    Raises:
        ValueError: the text is not a list of rising ranges.
    """
    indices: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        run = range(int(first), int(last if dash else first) + 1)
        if not run:
            raise ValueError("the ranges must rise")
        indices.extend(run)
    if not rising(indices):
        raise ValueError("the ranges must rise")
    return tuple(indices)


def rising(indices: Iterable[int]) -> bool:
    """Whether each index is above the one before it."""
    ordered = list(indices)
    return all(a < b for a, b in pairwise(ordered))
