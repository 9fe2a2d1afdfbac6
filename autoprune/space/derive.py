"""Importance becomes bounds: the largest pruning ratio of every group, from the shape of its scores."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from autoprune.config import Criterion, ModelSpec
from autoprune.graph import ChannelGraph
from autoprune.graph.emptiable import largest_set
from autoprune.importance.reduce import per_unit, removed_fraction
from autoprune.space.file import Granularity, GroupRule, SpaceFile
from autoprune.space.resolve import resolve
from autoprune.space.space import Scores

LARGEST_RATIO = 0.9
REACH = 0.2  # fraction of the dense GFLOPs that a space reaches down to, unless a budget asks for less
_REMOVABLE = 0.75  # fraction of a group's importance that may be removed; raised in steps where needed
_STEP = 0.05


def derive_space(
    graph: ChannelGraph,
    importance: Scores,
    spec: ModelSpec,
    input_size: tuple[int, int],
    criterion: Criterion = "obs",
    granularity: Granularity = "layer",
    round_to: int = 8,
    min_width: int = 8,
    reach: float = REACH,
    mparams: float = math.inf,
    empty: bool = False,
) -> SpaceFile:
    """Turns importance into the largest pruning ratio of every group.

    Let C(r) be the fraction of a group's importance that the least important r of its units hold (0 at 0,
    1 at 1, convex). The largest ratio is the largest r with C(r) <= 0.75, at most 0.9: where the curve is
    flat, because a few channels carry the group, the range is wide; where all channels score the same,
    C(r) = r and the largest ratio is 0.75. While the smallest detector of such a space has more than
    ``reach`` of the dense GFLOPs, or more parameters than ``mparams``, and not all ratios are 0.9, the 0.75
    is raised by 0.05.

    Args:
        graph: the channel groups.
        importance: {group: [width]}, none negative.
        spec: the detector.
        input_size: height and width in pixels that GFLOPs are counted at.
        criterion: what scored the channels.
        granularity: what shares one ratio.
        round_to: kept widths are multiples of this.
        min_width: smallest number of channels a group keeps.
        reach: fraction of the dense GFLOPs that the space must reach down to, without emptied groups.
        mparams: millions of parameters that it must reach down to as well.
        empty: let groups go as a whole, as many as can be emptied together.
    """
    curves = {
        name: removed_fraction(per_unit(importance[name], group)) for name, group in graph.prunable.items()
    }
    removable = _REMOVABLE
    while True:
        file = SpaceFile(
            model=spec.name,
            model_arguments=spec.arguments,
            input_size=input_size,
            criterion=criterion,
            granularity=granularity,
            round_to=round_to,
            min_width=min_width,
            groups=tuple(
                GroupRule(match=name, max_ratio=largest_ratio(curve, removable))
                for name, curve in curves.items()
            ),
        )
        space = resolve(file, graph)
        smallest, dense = (float(space.cost("gflops", widths)) for widths in (space.lowest, space.dense))
        reached = smallest <= reach * dense and float(space.cost("mparams", space.lowest)) <= mparams
        if reached or removable >= 1:
            return with_empty(file, graph) if empty else file
        removable += _STEP


def with_empty(file: SpaceFile, graph: ChannelGraph) -> SpaceFile:
    """The same space with a `max_ratio` of 1 for as many groups as can be emptied together."""
    names = set(largest_set(graph, graph.emptiable))
    rules = [
        rule.model_copy(update={"max_ratio": 1.0}) if rule.match in names and not rule.frozen else rule
        for rule in file.groups
    ]
    return file.model_copy(update={"groups": tuple(rules)})


def widest_space(spec: ModelSpec, input_size: tuple[int, int]) -> SpaceFile:
    """The space in which every group may go as far as any derived one lets it."""
    rule = GroupRule(match="*", max_ratio=LARGEST_RATIO)
    return SpaceFile(model=spec.name, model_arguments=spec.arguments, input_size=input_size, groups=(rule,))


def largest_ratio(curve: NDArray[np.float64], removable: float) -> float:
    """The largest ratio r with curve(r) <= ``removable``: linear between units, to 0.01 below, in 0.01..0.9.

    Args:
        curve: [units + 1], what `removed_fraction` returns.
        removable: fraction of the importance.
    """
    units = len(curve) - 1
    below = int(np.searchsorted(curve, removable, side="right")) - 1
    ratio = 1.0
    if below < units:
        ratio = (below + (removable - curve[below]) / (curve[below + 1] - curve[below])) / units
    return float(np.clip(np.floor(ratio * 100 + 1e-6) / 100, 0.01, LARGEST_RATIO))


def with_multiples(file: SpaceFile, multiples: Mapping[str, int]) -> SpaceFile:
    """The same space with a ``round_to`` of its own for each group whose multiple differs from the file's.

    Args:
        file: a space whose entries match single groups, as `derive_space` makes them.
        multiples: {group: multiple}.
    """
    rules = [
        rule.model_copy(update={"round_to": multiples[rule.match]})
        if not rule.frozen and multiples.get(rule.match, file.round_to) != file.round_to
        else rule
        for rule in file.groups
    ]
    return file.model_copy(update={"groups": tuple(rules)})
