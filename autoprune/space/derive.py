"""The search space: bounds on every group's pruning ratio, derived from importance, and its YAML file."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoprune.config import Criterion, ModelSpec
from autoprune.files import inline_yaml, write_text
from autoprune.graph import ChannelGraph, ChannelGroup
from autoprune.importance.reduce import per_unit, removed_fraction
from autoprune.space.file import Granularity, GroupRule, SpaceFile, ready_space
from autoprune.space.space import Space, Variable, Widths, resolve

__all__ = [
    "Granularity",
    "GroupRule",
    "Space",
    "SpaceFile",
    "Variable",
    "Widths",
    "derive_space",
    "ready_space",
    "render_space",
    "resolve",
    "save_space",
]

Scores = Mapping[str, NDArray[np.float64]]

LARGEST_RATIO = 0.9
_STEP = 0.05


def derive_space(
    graph: ChannelGraph,
    importance: Scores,
    spec: ModelSpec,
    input_size: tuple[int, int],
    criterion: Criterion = "joint",
    granularity: Granularity = "layer",
    round_to: int = 8,
    min_width: int = 8,
    removable: float = 0.75,
    reach: float = 0.2,
) -> SpaceFile:
    """Turns importance into the largest pruning ratio of every group.

    Let C(r) be the fraction of a group's importance that the least important r of its units hold (0 at 0,
    1 at 1, convex). The largest ratio is the largest r with C(r) <= ``removable``, at most 0.9: where the
    curve is flat, because a few channels carry the group, the range is wide; where all channels weigh the
    same, C(r) = r and the ratio ends at ``removable``. While the smallest detector of such a space has more
    than ``reach`` of the dense GFLOPs and not all ratios are 0.9, ``removable`` is raised by 0.05.

    Args:
        graph: the channel groups.
        importance: {group: [width]}, none negative.
        spec: the detector.
        input_size: height and width in pixels that GFLOPs are counted at.
        criterion: what scored the channels.
        granularity: what shares one ratio.
        round_to: kept widths are multiples of this.
        min_width: smallest number of channels a group keeps.
        removable: fraction of a group's importance that may go.
        reach: fraction of the dense GFLOPs that the space must reach down to.
    """
    curves = {
        name: removed_fraction(per_unit(importance[name], group)) for name, group in graph.prunable.items()
    }
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
        small, dense = (float(space.cost("gflops", widths)) for widths in (space.lowest, space.dense))
        if small <= reach * dense or removable >= 1:
            return file
        removable += _STEP


def with_steps(file: SpaceFile, steps: Mapping[str, int]) -> SpaceFile:
    """The same space with other multiples for the groups in ``steps``, where they differ from the file's."""
    rules = [
        rule.model_copy(update={"round_to": steps[rule.match]})
        if not rule.frozen and steps.get(rule.match, file.round_to) != file.round_to
        else rule
        for rule in file.groups
    ]
    return file.model_copy(update={"groups": tuple(rules)})


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


def save_space(path: Path, file: SpaceFile, graph: ChannelGraph, importance: Scores) -> None:
    """Writes the search space with a comment beside each group, whole or not at all."""
    write_text(path, render_space(file, graph, importance))


def render_space(file: SpaceFile, graph: ChannelGraph, importance: Scores) -> str:
    """The YAML text of a search space, readable, with comments; `SpaceFile.load` reads it back equal.

    An entry that matches one group by its whole name gets that group's width, fraction of the GFLOPs, and the
    fraction of its importance that the largest ratio removes; others get the number of groups they match.
    """
    space = resolve(file, graph)
    entries = [_entry(rule) for rule in file.groups]
    height, width = file.input_size
    column = min(max(len(entry) for entry in entries), 90)
    lines = [
        "# autoprune search space: the largest fraction of its channels that each channel group may lose.",
        "# Edit it freely. `match` is a glob over the names that `autoprune inspect` prints (* takes dots).",
        "# Where several entries match a group the last one counts; groups that none matches stay whole.",
        "# Other fields: `frozen: true`, `tie: WORD` (groups with one word share one ratio), `min_width: N`, "
        "`round_to: N`.",
        f"model: {json.dumps(file.model)}",
        f"model_arguments: {inline_yaml(file.model_arguments)}",
        f"input_size: [{height}, {width}]  # height, width: GFLOPs are counted at this size",
        f"criterion: {file.criterion}  # ranks the channels within a group",
        f"granularity: {file.granularity}  # what shares one ratio: layer (nothing), block, or stage",
        f"round_to: {file.round_to}  # kept widths are multiples of this",
        f"min_width: {file.min_width}  # channels that a group keeps at least",
        "",
        "# Beside each group: its channels; its fraction of the dense GFLOPs, counted in the layers that",
        "# write it and in those that read it (they add up to more than 100%); what the ratio leaves.",
        "groups:",
    ]
    fractions = _cost_fractions(space)
    for rule, entry in zip(file.groups, entries, strict=True):
        note = _note(rule, space, fractions, importance)
        lines.append(f"{entry:<{column}}{note}".rstrip())
    fixed = [group for group in graph.groups.values() if not group.prunable]
    if fixed:
        lines += ["", "# Never pruned:", *(f"#   {group.name} {group.reason}" for group in fixed)]
    return "\n".join(lines) + "\n"


def _entry(rule: GroupRule) -> str:
    fields = [f"match: {json.dumps(rule.match)}"]
    if rule.max_ratio is not None:
        fields.append(f"max_ratio: {rule.max_ratio!r}")
    if rule.frozen:
        fields.append("frozen: true")
    if rule.tie is not None:
        fields.append(f"tie: {json.dumps(rule.tie)}")
    if rule.min_width is not None:
        fields.append(f"min_width: {rule.min_width}")
    if rule.round_to is not None:
        fields.append(f"round_to: {rule.round_to}")
    return f"  - {{{', '.join(fields)}}}"


def _note(rule: GroupRule, space: Space, cost_fractions: Mapping[str, float], importance: Scores) -> str:
    group = space.graph.groups.get(rule.match)
    if group is None or not group.prunable:
        return ""
    place = space.names.index(group.name)
    left = int(space.lowest[place])
    text = f"  # {group.width} channels, {100 * cost_fractions[group.name]:.1f}% of GFLOPs"
    if group.unit > 1:
        text += f", in units of {group.unit}"
    if left == group.width:
        return text + "; stays whole"
    gone = 100 * removed_importance(group, left, importance[group.name])
    return text + f"; keeps at least {left}, without {gone:.0f}% of the importance"


def removed_importance(group: ChannelGroup, width: int, scores: NDArray[np.float64]) -> float:
    """Fraction of the group's importance that is lost where its ``width`` most important channels stay."""
    units = len(group.units) - width // group.unit
    return float(removed_fraction(per_unit(scores, group))[units])


def _cost_fractions(space: Space) -> dict[str, float]:
    """Fraction of the dense GFLOPs in the layers that write or read a group, by brute difference."""
    without = space.dense[None, :] - np.diag(space.dense)
    dense = float(space.cost("gflops", space.dense))
    fractions = 1 - space.cost("gflops", without) / dense
    return {name: float(fraction) for name, fraction in zip(space.names, fractions, strict=True)}
