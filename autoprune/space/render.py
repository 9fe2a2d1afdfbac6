"""The YAML text of a search space, with a comment beside each group."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoprune.files import inline_yaml, write_text
from autoprune.graph import ChannelGraph, ChannelGroup
from autoprune.importance.reduce import per_unit, removed_fraction
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.resolve import resolve
from autoprune.space.space import Scores, Space


def save_space(path: Path, file: SpaceFile, graph: ChannelGraph, importance: Scores) -> None:
    """Writes what `render_space` returns, whole or not at all.

    Raises:
        RunError: the file can't be written.
    """
    write_text(path, render_space(file, graph, importance))


def render_space(file: SpaceFile, graph: ChannelGraph, importance: Scores) -> str:
    """The YAML text of a search space, with comments; `SpaceFile.load` reads an equal space from it.

    An entry that matches one group by its full name is followed by that group's width, its fraction of the
    GFLOPs, and the fraction of its importance that the largest ratio removes; entries with a glob are not.

    Args:
        file: the search space.
        graph: the channel groups.
        importance: {group: [width]}, none negative.
    """
    space = resolve(file, graph)
    entries = [_entry(rule) for rule in file.groups]
    height, width = file.input_size
    column = min(max(len(entry) for entry in entries), 90)
    lines = [
        "# autoprune search space: the largest fraction of its channels that each channel group may lose.",
        "# Edit it freely. `match` is a glob over the names that `autoprune inspect` prints (* takes dots).",
        "# Where several entries match a group, the last one counts; groups without an entry stay whole.",
        "# With `max_ratio: 1.0` all may go, where `autoprune inspect` says that a group can be emptied.",
        "# Other fields: `frozen: true`, `tie: WORD` (groups with the same word share one ratio), "
        "`min_width: N`, `round_to: N`.",
        f"model: {json.dumps(file.model)}",
        f"model_arguments: {inline_yaml(file.model_arguments)}",
        f"input_size: [{height}, {width}]  # height, width: GFLOPs are counted at this size",
        f"criterion: {file.criterion}  # ranks the channels within a group",
        f"granularity: {file.granularity}  # what shares one ratio: layer (nothing), block, or stage",
        f"round_to: {file.round_to}  # kept widths are multiples of this",
        f"min_width: {file.min_width}  # smallest number of channels that a group keeps",
        "",
        "# Beside each group: its channels; its fraction of the dense GFLOPs, counted in the layers that",
        "# write it and in those that read it (they add up to more than 100%); what the largest ratio keeps.",
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


def removed_importance(group: ChannelGroup, width: int, scores: NDArray[np.float64]) -> float:
    """Fraction of the group's importance that is lost where its ``width`` most important channels are kept.

    Args:
        group: the channel group.
        width: channels kept, a multiple of the group's unit.
        scores: [group.width], none negative.
    """
    removed_units = len(group.units) - width // group.unit
    return float(removed_fraction(per_unit(scores, group))[removed_units])


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
    kept = int(space.least[place])
    text = f"  # {group.width} channels, {100 * cost_fractions[group.name]:.1f}% of GFLOPs"
    if group.unit > 1:
        text += f", in units of {group.unit}"
    may_go = space.max_ratio[place] >= 1
    if kept == group.width:
        return text + ("; keeps none or all" if may_go else "; stays whole")
    removed = 100 * removed_importance(group, kept, importance[group.name])
    least = "none, or at least" if may_go else "at least"
    return text + f"; keeps {least} {kept}, without {removed:.0f}% of the importance"


def _cost_fractions(space: Space) -> dict[str, float]:
    """Fraction of the dense GFLOPs in the layers that write or read a group: 1 - cost without it / dense."""
    without = space.dense[None, :] - np.diag(space.dense)
    dense = float(space.cost("gflops", space.dense))
    fractions = 1 - space.graph.cost.flops(without) / 1e9 / dense
    return {name: float(fraction) for name, fraction in zip(space.names, fractions, strict=True)}
