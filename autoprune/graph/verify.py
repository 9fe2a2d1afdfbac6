"""Tries out what the rules had to assume: that the code computes its sizes from the tensors it gets.

A literal in the code (`view(n, 256, -1)`, `zeros(n, 256)`) and a factor computed from a width
(`C ** -0.5`) look like any other number in a trace. A pruned copy that runs through the same ops, with the
lengths that the labels promise and the same factors, contains neither.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.graph.groups import ChannelGraph, ChannelGroup, Index
from autoprune.graph.labels import Atoms
from autoprune.graph.solve import connected, solve
from autoprune.graph.surgery import mask, prune
from autoprune.graph.trace import Step, Trace, replay, retrace

_SCALES = (torch.ops.aten.mul, torch.ops.aten.mul_, torch.ops.aten.div, torch.ops.aten.div_)
_TOGETHER = "can't shrink together with other groups in the model's code"


def verified(model: nn.Module, example_inputs: Sequence[Any], traced: Trace) -> ChannelGraph:
    """The graph of ``traced``, with the groups frozen that the model's code can't run without."""
    graph = solve(traced)
    groups = suspects(traced, graph)

    def problem_of(some: Sequence[ChannelGroup]) -> str | None:
        return _problem(model, example_inputs, traced, graph, some)

    while groups and (found := _culprits(problem_of, groups)):
        for group, problem in found:
            traced.constraints.freeze(atoms_of(traced, group), problem)
        graph = solve(traced)
        groups = [group for group in groups if group.name in graph.prunable]
    return graph


def _culprits(
    problem_of: Callable[[Sequence[ChannelGroup]], str | None], groups: Sequence[ChannelGroup]
) -> list[tuple[ChannelGroup, str]]:
    """The groups behind the problem that ``groups`` have together, by halving, each with its own problem."""
    problem = problem_of(groups)
    if problem is None:
        return []
    if len(groups) == 1:
        return [(groups[0], problem)]
    half = len(groups) // 2
    found = [*_culprits(problem_of, groups[:half]), *_culprits(problem_of, groups[half:])]
    return found or [(group, _TOGETHER) for group in groups]


def _problem(
    model: nn.Module,
    example_inputs: Sequence[Any],
    traced: Trace,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
) -> str | None:
    """Why the model fails or deviates once each of ``groups`` has lost its last unit."""
    keep = {group.name: group.units[:-1].ravel().tolist() for group in groups}
    steps, error = replay(prune(model, graph, keep), example_inputs, traced)
    if error is not None:
        lines = str(error).strip().splitlines() or [""]
        return f"has a fixed length in the model's code: {type(error).__name__}: {lines[0]}"
    problem, parting = _deviation(traced, groups, steps)
    if problem is None and parting is None:
        return None
    # Numbers of boxes, sizes of crops and the course of the code depend on values, which the dense model has
    # others of. The masked one has the same.
    masked = retrace(mask(model, graph, keep), example_inputs, traced)
    problem, parting = _deviation(masked, groups, steps)
    if problem is None and parting is not None and _parting(traced.constraints.steps, masked.constraints.steps) > parting:
        return "decides in the model's code what is run"
    return problem


def _parting(one: Sequence[tuple[Any, ...]], other: Sequence[tuple[Any, ...]]) -> int:
    """The number of ops that two runs have in common before they part.

    Ops that take something apart (a list of boxes) part runs too, where they give other numbers of parts.
    """
    pairs = enumerate(zip(one, other, strict=False))
    parted = (n for n, (a, b) in pairs if a[0] is not b[0] or len(a[2]) != len(b[2]))
    return next(parted, min(len(one), len(other)))


def _deviation(
    traced: Trace, groups: Sequence[ChannelGroup], steps: Sequence[Step]
) -> tuple[str | None, int | None]:
    """Where the ops of a pruned model are not those of ``traced`` without the last unit of each group.

    Returns:
        The first deviation, and after how many ops the two ran different ones, None if they never did.
    """
    constraints = traced.constraints
    channel = connected(constraints.size, [*constraints.same, *constraints.joined])
    removed, of_leaf = np.zeros(constraints.size, dtype=bool), np.zeros(constraints.size, dtype=bool)
    for group in groups:
        removed[channel[atoms_of(traced, group, group.units[-1])]] = True
    for leaf in traced.leaves:
        for axis in leaf.axes:
            if axis is not None:
                of_leaf[channel[axis]] = True
    removed, of_leaf = removed[channel], of_leaf[channel]
    parting = _parting(constraints.steps, steps)
    for (func, numbers, outputs), (_, numbers_now, shapes) in zip(
        constraints.steps[:parting], steps[:parting], strict=True
    ):
        for number, now in zip(numbers, numbers_now, strict=False):
            if not np.isclose(number, now, rtol=1e-5, atol=0, equal_nan=True):
                return f"sets a number in the model's code: {number:.6g} becomes {now:.6g} in {func}", None
        for axes, shape in zip(outputs, shapes, strict=True):
            for axis, length in zip(axes, shape, strict=False):
                if (
                    axis is not None
                    and length != len(axis) - np.count_nonzero(removed[axis])
                    and of_leaf[axis].any()
                ):
                    return f"has a length in the model's code that does not follow it, at {func}", None
    return None, None if parting == len(steps) == len(constraints.steps) else parting


def suspects(traced: Trace, graph: ChannelGraph) -> list[ChannelGroup]:
    """The prunable groups that rest on an assumption about how the code computes a size."""
    constraints = traced.constraints
    factors = {n for func, numbers, _ in constraints.steps if func.overloadpacket in _SCALES for n in numbers}
    roots = {n for factor in factors for n in _widths_behind(factor)}
    axes = (axis for *_, outputs in constraints.steps for labels in outputs for axis in labels)
    candidates = {id(axis): axis for axis in axes if axis is not None and len(axis) in roots}
    unit = traced.unit
    assert unit is not None
    # Every unit of a group has channels on each of its axes, so one shows them all.
    units = {name: unit[atoms_of(traced, group, axes=1)] for name, group in graph.prunable.items()}
    guessed = np.zeros(constraints.size, dtype=bool)
    for atoms in [*constraints.guesses, *candidates.values()]:
        guessed[unit[atoms]] = True
    return [group for name, group in graph.prunable.items() if guessed[units[name]].any()]


def atoms_of(
    traced: Trace, group: ChannelGroup, channels: Index | None = None, axes: int | None = None
) -> Atoms:
    """All parameter atoms of a group, or of some of its channels, or on its first ``axes`` only."""
    parts = []
    for name, d, index in group.members[:axes]:
        axis = traced.axes[name, d]
        assert axis is not None
        parts.append(axis[index >= 0 if channels is None else np.isin(index, channels)])
    return np.concatenate(parts)


def _widths_behind(factor: float) -> list[int]:
    """Numbers of channels that a factor may have been computed from: n, 1 / n, or their square roots."""
    if factor == 0 or not np.isfinite(factor):
        return []
    candidates = [abs(factor) ** power for power in (1, -1, 2, -2)]
    return [round(n) for n in candidates if 1 < n < 1e9 and abs(n - round(n)) < 1e-6 * n]
