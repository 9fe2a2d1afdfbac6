"""From scores of channels to scores of units, and to scores per cost."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from autoprune.graph import ChannelGraph, ChannelGroup

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


def per_cost(
    importance: Mapping[str, NDArray[np.float64]],
    graph: ChannelGraph,
    metric: Literal["gflops", "mparams"] = "gflops",
) -> Importance:
    """Divides each score by what removing its channel from the dense detector saves.

    The saving is a difference of the cost model, in GFLOPs or in millions of parameters per channel. A whole
    unit is removed at a time, so a channel's saving is that of its unit divided by the unit's channels.

    Raises:
        ValueError: a group of ``importance`` is not prunable.
    """
    saved = savings(graph, metric)
    unknown = next((name for name in importance if name not in saved), None)
    if unknown is not None:
        raise ValueError(f"group `{unknown}` is not prunable")
    return {name: np.asarray(scores, dtype=np.float64) / saved[name] for name, scores in importance.items()}


def savings(graph: ChannelGraph, metric: Literal["gflops", "mparams"] = "gflops") -> dict[str, float]:
    """GFLOPs, or millions of parameters, that one channel of each prunable group costs in the dense model."""
    cost, scale = (graph.cost.flops, 1e9) if metric == "gflops" else (graph.cost.params, 1e6)
    dense = np.asarray(graph.cost.dense, dtype=np.int64)
    units = np.array([graph.groups[name].unit for name in graph.cost.names], dtype=np.int64)
    less = np.asarray(cost(dense[None, :] - np.diag(units)))
    each = (float(cost(dense)) - less) / units / scale
    return {name: float(value) for name, value in zip(graph.cost.names, each, strict=True)}


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
