"""Finds the groups whose widths set numbers in the model's code, such as `C ** -0.5`, in few runs for all."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from autoprune.graph.deviations import Lengths, atoms_of, changed_numbers
from autoprune.graph.groups import ChannelGroup, Index
from autoprune.ops.labels import Step
from autoprune.ops.shape_calls import FREE
from autoprune.tracing.trace import Shape, Trace

Rerun = Callable[[Mapping[str, Index]], Sequence[Step[Shape]]]
"""Runs the model without the channels given by group; returns its ops, none if it fails."""
_MOST_RUNS = 3


def find_number_culprits(
    rerun: Rerun, traced: Trace, groups: Sequence[ChannelGroup]
) -> list[tuple[ChannelGroup, str]]:
    """Groups that change a number in the model's code, each with the first such number.

    What becomes of a number tells which width it was computed from, if each group loses another number of
    units. As small groups can't, and a number may fit a width by chance, each loses several numbers of units
    in turn: the digits of its place among the groups. A number that fits no width, or those of several
    groups, names none.
    """
    by_name = {group.name: group for group in groups if len(group.units) > 1}
    shrunk = list(by_name.values())
    candidates: dict[tuple[int, int], set[str]] = {}
    texts: dict[tuple[int, int], str] = {}
    for run in range(_MOST_RUNS):
        lost = {group.name: group.units[-_count(group, n, run) :] for n, group in enumerate(shrunk)}
        changed = changed_numbers(traced, rerun(lost))
        behind = _groups_behind(traced, shrunk, Lengths(traced, shrunk, lost))
        fitting = {
            place: {name for widths in number.widths() for name in behind.get(widths, ())}
            for place, number in changed.items()
        }
        texts = {place: number.text for place, number in changed.items()} if run == 0 else texts
        candidates = {
            place: names & candidates.get(place, names if run == 0 else set())
            for place, names in fitting.items()
        }
        if run > 0 and all(len(names) <= 1 for names in candidates.values()):
            break
    named: dict[str, str] = {}
    for place, names in candidates.items():
        if len(names) == 1:
            named.setdefault(next(iter(names)), texts[place])
    return [(by_name[name], text) for name, text in named.items()]


def _count(group: ChannelGroup, number: int, digit: int) -> int:
    """How many units a group loses in a run: one more than a digit of its number."""
    base = len(group.units) - 1
    return 1 + number // int(base**digit) % base


def _groups_behind(
    traced: Trace, groups: Sequence[ChannelGroup], length: Lengths
) -> dict[tuple[int, int], set[str]]:
    """By dense and pruned length, the groups with channels on an axis that goes from one to the other."""
    unit = traced.unit
    assert unit is not None
    name_of = {int(root): group.name for group in groups for root in unit[atoms_of(traced, group, axes=1)]}
    behind: defaultdict[tuple[int, int], set[str]] = defaultdict(set)
    axes = (axis for step in traced.constraints.steps for labels in step.outputs for axis in labels)
    for axis in {id(axis): axis for axis in axes if axis is not None}.values():
        before, after = len(axis), length(axis, len(axis))
        if after not in (before, FREE):
            names = {name_of.get(int(root)) for root in np.unique(unit[axis])}
            behind[before, after] |= {name for name in names if name is not None}
    return behind
