"""What is kept of a finished trial so that others can race it (`racing`), and so that two can be compared."""

import base64
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RACED = "raced_images"  # metric of a trial that lost a race: the images that it was evaluated on
MAPS = "maps"  # beside the metrics of one that was evaluated in full: its `prefix_maps`
RESAMPLES = 100  # bootstrap samples of each prefix of the images; studies hold so many, so it can't change
SAME_COST = 1e-3  # costs that differ by this fraction are the same
SCALE, MISSING = 50_000, 65_535  # mAPs as integers of two bytes, in steps of 0.002 points
Maps = NDArray[np.float64]


@dataclass(frozen=True)
class Rival:
    """A trial that another one must beat.

    Attributes:
        trial: its number.
        map: its mAP on all images.
        costs: objectives but mAP; a trial that has less of any of them is not beaten by mAP.
        maps: its `prefix_maps` as text; see `encode_maps`.
    """

    trial: int
    map: float
    costs: Mapping[str, float]
    maps: str


def rival_of(costs: Mapping[str, float], rivals: Sequence[Rival]) -> Rival | None:
    """The best of several rivals that cost no more than a trial with ``costs``, if any does."""
    no_dearer = (
        rival
        for rival in rivals
        if all(value <= costs[name] * (1 + SAME_COST) for name, value in rival.costs.items())
    )
    return max(no_dearer, key=lambda rival: rival.map, default=None)


def compare(ours: Maps, theirs: Maps) -> tuple[float, float]:
    """Difference of two mAPs on the same images, and its standard error; `prefix_maps` of one look each."""
    differences = ours - theirs
    if np.isfinite(differences[1:]).sum() < 2:
        return float(differences[0]), math.nan
    return float(differences[0]), float(np.nanstd(differences[1:], ddof=1))


def encode_maps(maps: Maps) -> str:
    """The `prefix_maps` of all looks [looks, 1 + resamples] as text of some 2 kB."""
    numbers = np.where(np.isnan(maps), MISSING, np.round(maps * SCALE))
    return base64.b64encode(numbers.astype("<u2").tobytes()).decode()


def rounded(maps: Maps) -> Maps:
    """MAPs on so many resamples as they are kept."""
    return np.asarray(decode_maps(encode_maps(maps)).reshape(maps.shape))


def decode_maps(text: str) -> Maps:
    """The reverse of `encode_maps`."""
    numbers = np.frombuffer(base64.b64decode(text), "<u2").reshape(-1, 1 + RESAMPLES)
    return np.asarray(np.where(numbers == MISSING, np.nan, numbers / SCALE))
