"""How a policy's widths name its input size, where a search chooses among several."""

from collections.abc import Mapping
from typing import Final

INPUT_SIZE: Final = "input size"
"""The key beside the channel groups, in studies too. No group has this name: modules' hold no spaces."""
INPUT_PX: Final = "input_px"
"""The same in metrics, of the dense detector too where there are several sizes."""


def pixels_of(widths: Mapping[str, int]) -> int | None:
    """The shorter side in pixels that a policy resizes to; ``None`` where the search has one input size."""
    return widths.get(INPUT_SIZE)


def channels_of(widths: Mapping[str, int]) -> dict[str, int]:
    """The widths of the channel groups alone."""
    return {name: width for name, width in widths.items() if name != INPUT_SIZE}
