"""Numbers in the model's code that widths set, such as `C ** -0.5`: the groups behind them are frozen."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
from torch import nn

from autoprune.errors import ModelError
from autoprune.graph.culprits import failed_in, find_culprits, inside
from autoprune.graph.deviations import (
    SETS,
    Lengths,
    atoms_of,
    changed_numbers,
    failure_text,
    kept_without,
)
from autoprune.graph.groups import ChannelGraph, ChannelGroup, Index
from autoprune.graph.solve import solve
from autoprune.graph.surgery import mask
from autoprune.graph.workbench import Workbench
from autoprune.ops.labels import Step
from autoprune.ops.shape_calls import FREE
from autoprune.tracing.replays import replay, retrace
from autoprune.tracing.trace import Shape, Trace

Rerun = Callable[[Mapping[str, Index]], Sequence[Step[Shape]]]
"""Runs the model without the channels given by group; returns its ops, none if it fails."""
_MOST_RUNS = 3
_NARROW = 3  # units at most that groups are narrowed to


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


def with_fixed_numbers(
    model: nn.Module, example_inputs: Sequence[Any], traced: Trace, bench: Workbench, graph: ChannelGraph
) -> ChannelGraph:
    """The graph without groups that change a number in the model's code, however it is computed.

    All groups are shrunk at once, by one unit each and then to a few, so that neither a formula nor a
    threshold hides it, and attributes such as `out_channels` are seen too.
    """

    def rerun(lost: Mapping[str, Index]) -> list[Step[Shape]]:
        return run_without(bench, example_inputs, traced, graph, lost)[0]

    failed: Sequence[str] = ()

    def problem_without(lost: Mapping[str, Index]) -> str | None:
        nonlocal failed
        steps, failure, failed = run_without(bench, example_inputs, traced, graph, lost)
        changed = changed_numbers(traced, steps)
        if (failure or changed) and traced.constraints.by_values:
            keep = kept_without([graph.groups[name] for name in lost], lost)
            try:
                masked = retrace(mask(model, graph, keep), example_inputs, traced)
            except ModelError:  # its code refuses such values, and not widths
                return None
            by_value = changed_numbers(traced, masked.constraints.steps)
            changed = {place: number for place, number in changed.items() if place not in by_value}
        return failure or next((number.text for number in changed.values()), None)

    for fewest in (False, True):
        while True:
            groups = [group for group in graph.prunable.values() if len(group.units) > 1]
            lost = {
                group.name: group.units[min(1 + place % _NARROW, len(group.units) - 1) if fewest else -1 :]
                for place, group in enumerate(groups)
            }
            try:
                problem = problem_without(lost)
            except ModelError:  # it can't be copied, and so not be pruned either: `prune` says why
                return graph
            if problem is None:
                break
            named = find_number_culprits(rerun, traced, groups) if problem.startswith(SETS) else []
            named = named or find_culprits(
                partial(_of_subset, problem_without, lost), groups, lambda some: inside(some, failed)
            )
            if not named:
                break
            for group, text in named:
                traced.constraints.freeze(atoms_of(traced, group), text)
            graph = solve(traced)
    return graph


def _of_subset(
    problem_without: Callable[[Mapping[str, Index]], str | None],
    lost: Mapping[str, Index],
    groups: Sequence[ChannelGroup],
) -> str | None:
    return problem_without({group.name: lost[group.name] for group in groups})


def run_without(
    bench: Workbench,
    example_inputs: Sequence[Any],
    traced: Trace,
    graph: ChannelGraph,
    lost: Mapping[str, Index],
) -> tuple[list[Step[Shape]], str | None, Sequence[str]]:
    """The ops of the model without these channels; if it fails none, but why, and in which modules."""
    with bench.pruned(graph, kept_without([graph.groups[name] for name in lost], lost)) as pruned:
        steps, error = replay(pruned, example_inputs, traced)
        return (steps, None, ()) if error is None else ([], failure_text(error), failed_in(pruned, error))
