"""Kept channels as text, ``0-5,8,11-63`` or ``none``; free of torch, which drivers of trials never load."""

from collections.abc import Sequence
from itertools import pairwise

NONE = "none"


def to_ranges(indices: Sequence[int]) -> str:
    """Formats rising indices as ranges: ``[0, 1, 2, 5]`` is ``"0-2,5"``, ``[]`` is ``"none"``."""
    runs: list[list[int]] = []
    for index in indices:
        if runs and index == runs[-1][1] + 1:
            runs[-1][1] = index
        else:
            runs.append([index, index])
    parts = [str(first) if first == last else f"{first}-{last}" for first, last in runs]
    return ",".join(parts) or NONE


def from_ranges(text: str) -> tuple[int, ...]:
    """Parses the output of `to_ranges`.

    Raises:
        ValueError: the text is not a list of rising ranges.
    """
    if text.strip() == NONE:
        return ()
    indices: list[int] = []
    most = 10_000_000  # no layer has as many channels, and a file could ask for all the memory
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        run = range(int(first), int(last if dash else first) + 1)
        if not run:
            raise ValueError("the ranges must rise")
        if run[-1] >= most:
            raise ValueError(f"a channel is below {most}")
        indices.extend(run)
    if any(a >= b for a, b in pairwise(indices)):
        raise ValueError("the ranges must rise")
    return tuple(indices)
