"""Sensitivity curves: how the detection loss rises as one group is narrowed, and the scores made of them.

A criterion says what the loss would lose if channels were cut off. Every trial begins with a reconstruction,
which gives most of that back, of some groups more than of others. A curve is measured after it.
"""

from collections.abc import Mapping
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from autoprune.graph import ChannelGraph, ChannelGroup
from autoprune.importance.gradients import convex_slopes
from autoprune.importance.reduce import Importance, per_unit

CURVES = "curves"
"""Stands for a criterion's name where scores were made of curves."""
_APART = 1e-14  # of a score: survives its division among the channels of a unit


class Curve(NamedTuple):
    """Rise of the detection loss when one group alone is narrowed.

    Attributes:
        widths: channels kept, falling, none of them dense; 0 where the group was emptied.
        rises: loss over the dense detector's at each; noise can make them negative.
    """

    widths: tuple[int, ...]
    rises: tuple[float, ...]


def ratios_to_widths(group: ChannelGroup, ratios: tuple[float, ...]) -> tuple[int, ...]:
    """The widths of some pruning ratios, whole units, at least one: falling, none twice, none dense."""
    units = len(group.units)
    kept = {min(max(1, round(units * (1 - ratio))), units) * group.unit for ratio in ratios}
    return tuple(sorted(kept - {group.width}, reverse=True))


def curve_scores(curves: Mapping[str, Curve], order: Importance, graph: ChannelGraph) -> Importance:
    """Scores in units of the loss whose sum over a group's least important channels is its curve.

    Between the measured widths the curve is linear; beyond the last one it keeps its slope. Of it, made
    non-decreasing, the scores are the slopes of the greatest convex minorant, as those of `joint` are.

    Args:
        curves: of each prunable group.
        order: {group: [width]}, which says the channels that go first, as when the curves were measured.
        graph: the channel groups.

    Returns:
        {group: [width]}, none negative, in the same order.
    """
    return {name: _scores(curves[name], order[name], group) for name, group in graph.prunable.items()}


def _scores(curve: Curve, order: NDArray[np.float64], group: ChannelGroup) -> NDArray[np.float64]:
    units = len(group.units)
    removed = np.array([0.0, *(units - width / group.unit for width in curve.widths)])
    rises = np.maximum.accumulate([0.0, *curve.rises])
    every = np.arange(units + 1)
    values = np.interp(every, removed, rises)
    if removed[-1] < units and len(removed) > 1:
        slope = (rises[-1] - rises[-2]) / (removed[-1] - removed[-2])
        values += slope * np.maximum(every - removed[-1], 0)
    single = per_unit(order, group)
    ranked = np.argsort(-single, kind="stable")[::-1]  # of equal ones, the first is kept longest
    of_units = np.empty(units)
    of_units[ranked] = convex_slopes(values)
    # Where the minorant is straight its slopes are equal: a trace of the given scores keeps the order.
    of_units += 1e-6 * (of_units.mean() or 1.0) * single / (single.mean() or 1.0)
    for lower, higher in pairwise(ranked):  # the trace of two close scores can be below one's precision
        if single[lower] < single[higher] and of_units[higher] < of_units[lower] * (1 + _APART):
            of_units[higher] = of_units[lower] * (1 + _APART)
    scores = np.zeros(group.width)
    scores[group.units] = of_units[:, None] / group.unit
    return scores
