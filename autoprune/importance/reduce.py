"""From scores of channels to scores of units, and to a group's cumulative importance."""

import numpy as np
from numpy.typing import NDArray

from autoprune.graph import ChannelGroup

Importance = dict[str, NDArray[np.float64]]


def add_at(index: NDArray[np.int64], values: NDArray[np.float64], width: int) -> NDArray[np.float64]:
    """Sums ``values`` [n] into the group channels that ``index`` [n] names, -1 ignored. Shape [width]."""
    members = index >= 0
    total = np.zeros(width)
    np.add.at(total, index[members], values[members])
    return total


def per_unit(scores: NDArray[np.float64], group: ChannelGroup) -> NDArray[np.float64]:
    """Sums scores [width] over each unit's channels, which are removed together. Shape [units]."""
    of_units: NDArray[np.float64] = np.asarray(scores, dtype=np.float64)[group.units]
    return np.asarray(of_units.sum(axis=1))


def most_important(scores: NDArray[np.float64], group: ChannelGroup, width: int) -> tuple[int, ...]:
    """The channels of a group's most important units, rising; of units with the same score, the first.

    Args:
        scores: [group.width].
        group: the channel group.
        width: channels kept, a multiple of the group's unit.
    """
    ranked = np.argsort(-per_unit(scores, group), kind="stable")
    return tuple(int(channel) for channel in np.sort(group.units[ranked[: width // group.unit]].ravel()))


def removed_fraction(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    """The cumulative importance curve of a group.

    Args:
        scores: one score per unit [units], none negative.

    Returns:
        [units + 1]: entry k is the fraction of the group's importance that its k least important units hold;
        0 at 0, 1 at the end, convex. A group of zeros counts as flat: k / units.
    """
    ordered = np.sort(np.asarray(scores, dtype=np.float64))
    total = ordered.sum()
    if not total > 0:
        return np.linspace(0.0, 1.0, len(ordered) + 1)
    return np.concatenate([[0.0], np.minimum(np.cumsum(ordered) / total, 1.0)])
