"""Tests what the rules had to assume: that the model's code computes sizes from the tensors it gets.

A literal in the code (`view(n, 256, -1)`, `zeros(n, 256)`) and a factor computed from a width
(`C ** -0.5`) look like any other number in a trace. A pruned copy that runs through the same ops, with the
lengths that the labels predict and the same factors, contains neither.

Code that branches on values may run other ops in a pruned model, so masked models are traced where it does.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.errors import ModelError
from autoprune.graph.groups import ChannelGraph, ChannelGroup, Index
from autoprune.graph.labels import Atoms, Axis, Step
from autoprune.graph.shape_calls import FREE, MendedShapes, Misfit
from autoprune.graph.solve import connected, solve
from autoprune.graph.surgery import mask
from autoprune.graph.trace import Shape, Trace, replay, retrace
from autoprune.graph.workbench import Workbench

_SCALES = (torch.ops.aten.mul, torch.ops.aten.mul_, torch.ops.aten.div, torch.ops.aten.div_)
_FIXED = "a fixed length in the model's code"
_STAYS = "a length in the model's code that does not follow it, at"
_TOGETHER = "can't shrink together with other groups in the model's code"


def verified(
    model: nn.Module, example_inputs: Sequence[Any], traced: Trace, bench: Workbench | None = None
) -> ChannelGraph:
    """The graph of ``traced``, in which the groups that the model's code needs whole are frozen.

    ``bench`` is of the model.
    """
    workbench = bench or Workbench(model)
    graph = solve(traced)
    if traced.may_branch:
        graph = _with_other_branches(model, example_inputs, traced, graph)
    groups = suspects(traced, graph)

    def problem_of(subset: Sequence[ChannelGroup]) -> str | None:
        return _problem(model, workbench, example_inputs, traced, graph, subset)

    while groups:
        misfits: list[Misfit] = []
        problem = _problem(model, workbench, example_inputs, traced, graph, groups, misfits)
        named = _blamed(traced, groups, misfits)
        if not named and problem is not None:
            named = find_culprits(problem_of, groups)
        if not named:
            break
        for group, text in named:
            traced.constraints.freeze(atoms_of(traced, group), text)
        graph = solve(traced)
        groups = [group for group in groups if group.name in graph.prunable]
    return graph


def _blamed(
    traced: Trace, groups: Sequence[ChannelGroup], misfits: Sequence[Misfit]
) -> list[tuple[ChannelGroup, str]]:
    """The groups whose lengths the code does not follow, each with the first such call."""
    unit = traced.unit
    assert unit is not None
    group_of = {int(root): group for group in groups for root in unit[atoms_of(traced, group, axes=1)]}
    blamed: dict[str, tuple[ChannelGroup, str]] = {}
    for misfit in misfits:
        reason = f"has {_FIXED}: {misfit.text}" if misfit.text else f"has {_STAYS} {misfit.call.func.__name__}"
        for axis in misfit.changed:
            for root in np.unique(unit[axis]) if axis is not None else ():
                if int(root) in group_of:
                    group = group_of[int(root)]
                    blamed.setdefault(group.name, (group, reason))
    return list(blamed.values())


def _with_other_branches(
    model: nn.Module, example_inputs: Sequence[Any], traced: Trace, graph: ChannelGraph
) -> ChannelGraph:
    """The graph once ``traced`` also holds what two models run that are masked by half, each by another.

    Code that branches on values may run ops in them that the dense model does not; it can't be said which ops
    each of all policies would run.
    """
    for half in (0, 1):
        kept = {name: np.array_split(group.units, 2)[half] for name, group in graph.prunable.items()}
        keep = {name: units.ravel().tolist() for name, units in kept.items() if units.size}
        try:
            masked = retrace(mask(model, graph, keep), example_inputs, traced, traced.constraints.size)
        except ModelError:  # its code refuses such values; a trial with a pruned one says so
            continue
        dense_steps, steps = traced.constraints.steps, masked.constraints.steps
        if not len(dense_steps) == len(steps) == _common_steps(dense_steps, steps):
            traced.constraints.merge(masked.constraints)
    return solve(traced)


def find_culprits(
    problem_of: Callable[[Sequence[ChannelGroup]], str | None],
    groups: Sequence[ChannelGroup],
    likely: Callable[[Sequence[ChannelGroup]], Sequence[ChannelGroup]] = lambda _: (),
) -> list[tuple[ChannelGroup, str]]:
    """Bisects ``groups`` to those that cause a problem, each with its own one.

    Args:
        problem_of: tries groups.
        groups: to search among.
        likely: those that the problem just found points to, which are tried first.
    """
    problem = problem_of(groups)
    if problem is None:
        return []
    if len(groups) == 1:
        return [(groups[0], problem)]
    first = likely(groups)
    if 0 < len(first) < len(groups) and (named := find_culprits(problem_of, first, likely)):
        found = {id(group) for group, _ in named}
        rest = [group for group in groups if id(group) not in found]
        return [*named, *(find_culprits(problem_of, rest, likely) if rest else [])]
    half = len(groups) // 2
    named = [
        *find_culprits(problem_of, groups[:half], likely),
        *find_culprits(problem_of, groups[half:], likely),
    ]
    return named or [(group, _TOGETHER) for group in groups]


def _problem(
    model: nn.Module,
    bench: Workbench,
    example_inputs: Sequence[Any],
    traced: Trace,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    misfits: list[Misfit] | None = None,
) -> str | None:
    """Why the model fails or deviates once each of ``groups`` has lost its last unit.

    With ``misfits``, calls that have fixed lengths go into it and are mended.
    """
    keep = {group.name: group.units[:-1].ravel().tolist() for group in groups}
    mended = MendedShapes(traced.constraints.shape_calls, _Lengths(traced, groups)) if misfits is not None else None
    with bench.pruned(graph, keep) as pruned:
        steps, error = replay(pruned, example_inputs, traced, mended)
    if misfits is not None and mended is not None:
        misfits += mended.misfits
    if error is not None:
        lines = str(error).strip().splitlines() or [""]
        return f"has {_FIXED}: {type(error).__name__}: {lines[0]}"
    problem, common = _deviation(traced, groups, steps)
    if problem is None and common is None:
        return None
    # Numbers of boxes, sizes of crops and branches depend on values, which differ from the dense model's.
    # The masked model has the same values.
    masked = retrace(mask(model, graph, keep), example_inputs, traced)
    problem, common = _deviation(masked, groups, steps)
    if problem is not None or common is None:
        return problem
    branches = _common_steps(traced.constraints.steps, masked.constraints.steps) > common
    return "decides in the model's code what is run" if branches else None


def _common_steps(one: Sequence[Step[Any]], other: Sequence[Step[Any]]) -> int:
    """The number of ops that two runs have in common before they diverge.

    Runs diverge where the ops differ, and where one op (such as splitting a list of boxes) returns another
    number of tensors.
    """
    pairs = enumerate(zip(one, other, strict=False))
    diverged = (n for n, (a, b) in pairs if a.op is not b.op or len(a.outputs) != len(b.outputs))
    return next(diverged, min(len(one), len(other)))


def _deviation(
    traced: Trace, groups: Sequence[ChannelGroup], steps: Sequence[Step[Shape]]
) -> tuple[str | None, int | None]:
    """How the ops of a pruned model differ from those of ``traced`` without the last unit of each group.

    Returns:
        The first deviation, and the number of ops before the two runs diverged, None if they never did.
    """
    constraints, length = traced.constraints, _Lengths(traced, groups)
    common = _common_steps(constraints.steps, steps)
    for before, after in zip(constraints.steps[:common], steps[:common], strict=True):
        for old, new in zip(before.numbers, after.numbers, strict=False):
            if not np.isclose(old, new, rtol=1e-5, atol=0, equal_nan=True):
                return f"sets a number in the model's code: {old:.6g} becomes {new:.6g} in {before.op}", None
        for axes, shape in zip(before.outputs, after.outputs, strict=True):
            for axis, n in zip(axes, shape, strict=False):
                if axis is not None and length(axis, len(axis)) not in (n, FREE):
                    return f"has {_STAYS} {before.op}", None
    return None, None if common == len(steps) == len(constraints.steps) else common


class _Lengths:
    """Predicts lengths in a model without the last unit of each of ``groups``: from the label, and the dense one."""

    def __init__(self, traced: Trace, groups: Sequence[ChannelGroup]) -> None:
        constraints = traced.constraints
        channel = connected(constraints.size, [*constraints.same, *constraints.joined])
        removed, of_leaf = np.zeros(constraints.size, dtype=bool), np.zeros(constraints.size, dtype=bool)
        for group in groups:
            removed[channel[atoms_of(traced, group, group.units[-1])]] = True
        for leaf in traced.leaves:
            for axis in leaf.axes:
                if axis is not None:
                    of_leaf[channel[axis]] = True
        self._removed, self._of_leaf = removed[channel], of_leaf[channel]

    def __call__(self, axis: Axis, n: int) -> int:
        if axis is None:
            return n
        return n - np.count_nonzero(self._removed[axis]) if self._of_leaf[axis].any() else FREE


def suspects(traced: Trace, graph: ChannelGraph) -> list[ChannelGroup]:
    """The prunable groups that depend on an assumption about how the code computes a size."""
    constraints = traced.constraints
    factors = {n for step in constraints.steps if step.op.overloadpacket in _SCALES for n in step.numbers}
    roots = {n for factor in factors for n in _widths_behind(factor)}
    axes = (axis for step in constraints.steps for labels in step.outputs for axis in labels)
    candidates = {id(axis): axis for axis in axes if axis is not None and len(axis) in roots}
    unit = traced.unit
    assert unit is not None
    # Every unit of a group has channels on each of its axes, so one axis is enough.
    units = {name: unit[atoms_of(traced, group, axes=1)] for name, group in graph.prunable.items()}
    guessed = np.zeros(constraints.size, dtype=bool)
    for atoms in [*constraints.guesses, *candidates.values()]:
        guessed[unit[atoms]] = True
    return [group for name, group in graph.prunable.items() if guessed[units[name]].any()]


def atoms_of(
    traced: Trace, group: ChannelGroup, channels: Index | None = None, axes: int | None = None
) -> Atoms:
    """All parameter atoms of a group, or of some of its channels, or only those on its first ``axes``."""
    parts = []
    for name, d, index in group.members[:axes]:
        axis = traced.axes[name, d]
        assert axis is not None
        parts.append(axis[index >= 0 if channels is None else np.isin(index, channels)])
    return np.concatenate(parts)


def _widths_behind(factor: float) -> list[int]:
    """Widths n that a factor may have been computed from, as n, 1 / n, or their square roots."""
    if factor == 0 or not np.isfinite(factor):
        return []
    candidates = [abs(factor) ** power for power in (1, -1, 2, -2)]
    return [round(n) for n in candidates if 1 < n < 1e9 and abs(n - round(n)) < 1e-6 * n]
