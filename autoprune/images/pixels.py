"""Pixels of every kind that Pillow reads, as 8-bit RGB; deeper grays by the range of their set."""

import math
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoprune.errors import DataError

SAMPLED = 64
"""Images, at most, whose values tell the range of a set."""
OUTLYING = 1000
"""A value further out than this many times the range of the other 99.9% marks missing pixels: -9999, 1e38."""
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for a file that is no image, or is damaged."""


class Levels(NamedTuple):
    """Which gray values become black and white: ``low`` becomes 0, and the value below ``high`` 255."""

    low: float
    high: float


def is_deep(mode: str) -> bool:
    """Whether gray values of an image of this mode may lie beyond 0 … 255: 16- and 32-bit, and float."""
    return mode in ("I", "F") or mode.startswith("I;16")


def is_deep_color(image: Any) -> bool:
    """Whether an image that is open and not yet loaded stores 16 bits of each color, or of gray and alpha.

    Of these Pillow keeps the upper 8.
    """
    tiles = getattr(image, "tile", None) or ()
    return not is_deep(image.mode) and any(";16" in str(tile[3]) for tile in tiles)


def check_colors(files: Sequence[Path]) -> None:
    """Refuses a set of deep colors that use fewer than 16 bits: of 12 bits in 16, Pillow keeps 4.

    Args:
        files: images of the set with deep colors; `SAMPLED` of them, evenly spread, are decoded.

    Raises:
        DataError: a file can't be decoded, or the values of all use fewer bits.
    """
    highest = 0
    for file in _sample(files):
        try:
            with Image.open(file) as image:
                highest = max(highest, int(np.asarray(image.convert("RGB")).max()))
        except UNREADABLE as error:
            raise undecodable(file, error) from error
        if highest >= 128:
            return
    raise DataError(
        f"{files[0]} stores 16 bits of each color, and the {len(files)} such images here use fewer: the "
        f"highest value is below {256 * (highest + 1)} of 65536; save them with 8 bits of each color"
    )


def measure_levels(files: Sequence[Path]) -> Levels:
    """The levels of a set: from 0 to the smallest power of two that no value exceeds.

    So 12-bit grays are read as 12 bits wherever they are stored, and floats up to 1.0 as fractions. Where
    values are below 0, the lowest is black and the highest white.

    Args:
        files: images of the set with deep grays; `SAMPLED` of them, evenly spread, are decoded.

    Raises:
        DataError: a file can't be decoded.
    """
    return _levels([_values(file) for file in _sample(files)])


def _sample(files: Sequence[Path]) -> list[Path]:
    return [files[index] for index in np.linspace(0, len(files) - 1, min(SAMPLED, len(files))).astype(int)]


def _values(file: Path) -> NDArray[np.float64]:
    """Lowest value, 0.1% and 99.9% quantiles, and highest value."""
    try:
        with Image.open(file) as image:
            return _quantiles(np.asarray(image))
    except UNREADABLE as error:
        raise undecodable(file, error) from error


def _quantiles(values: NDArray[Any]) -> NDArray[np.float64]:
    finite = values[np.isfinite(values)].astype(np.float64)
    if not finite.size:
        return np.zeros(4)
    return np.asarray(np.quantile(finite, [0, 0.001, 0.999, 1]))


def _levels(quantiles: Iterable[NDArray[np.float64]]) -> Levels:
    table = np.stack(list(quantiles))
    lowest, low = table[:, 0].min(), table[:, 1].min()
    high, highest = table[:, 2].max(), table[:, 3].max()
    spread = OUTLYING * (high - low)
    lowest = low if spread and low - lowest > spread else lowest
    highest = high if spread and highest - high > spread else highest
    if lowest < 0:
        return Levels(float(lowest), float(max(highest, np.nextafter(lowest, np.inf))))
    if highest == 0:
        return Levels(0.0, 1.0)
    exponent = math.frexp(highest)[1]  # 2^(exponent - 1) <= highest < 2^exponent
    fraction = highest <= 1 and highest == 2.0 ** (exponent - 1)  # 1.0 is white itself
    return Levels(0.0, 2.0 ** (exponent - fraction))


def to_rgb(image: Any, levels: Levels | None = None) -> Any:
    """A loaded image as one of 8-bit RGB.

    Args:
        image: of any of Pillow's modes.
        levels: of deep grays; ``None`` takes those of the image alone. What is not finite becomes black.
    """
    if is_deep(image.mode):
        values = np.asarray(image)
        low, high = levels or _levels([_quantiles(values)])
        known = np.where(np.isfinite(values), values, low).astype(np.float64)
        gray = np.floor((known - low) * (256 / (high - low))).clip(0, 255)
        image = Image.fromarray(gray.astype(np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a detector does not use a palette's transparency
        return image.convert("RGB")


def undecodable(path: Path, error: BaseException) -> DataError:
    """The error to raise for an image that opens and can't be decoded."""
    return DataError(f"cannot decode {path}: {' '.join(str(error).split())}; replace or remove it")
