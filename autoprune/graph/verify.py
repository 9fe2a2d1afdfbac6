"""Tries out what the rules had to assume: that the code computes its sizes from the tensors it gets.

A literal in the code (`view(n, 256, -1)`, `zeros(n, 256)`) and a factor computed from a width
(`C ** -0.5`) look like any other number in a trace. A pruned copy that runs through the same ops, with the
lengths that the labels promise and the same factors, contains neither.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from autoprune.graph.groups import ChannelGraph, ChannelGroup, Index
from autoprune.graph.labels import Atoms
from autoprune.graph.solve import connected, solve
from autoprune.graph.surgery import prune
from autoprune.graph.trace import Trace, replay, undisturbed


def verified(model: nn.Module, example_inputs: Sequence[Any], traced: Trace) -> ChannelGraph:
    """The graph of ``traced``, with the groups frozen that the model's code can't run without."""
    graph = solve(traced)
    groups = suspects(traced, graph)
    if not groups or _problem(model, example_inputs, traced, graph, groups) is None:
        return graph
    problems = {group.name: _problem(model, example_inputs, traced, graph, [group]) for group in groups}
    together = "can't shrink together with other groups in the model's code"
    single = any(problems.values())
    for group in groups:
        problem = problems[group.name] if single else together
        if problem is not None:
            traced.facts.freeze(atoms_of(traced, group), problem)
    graph = solve(traced)
    rest = [group for group in groups if group.name in graph.prunable]
    if rest and _problem(model, example_inputs, traced, graph, rest) is not None:
        for group in rest:
            traced.facts.freeze(atoms_of(traced, group), together)
        graph = solve(traced)
    return graph


def _problem(
    model: nn.Module,
    example_inputs: Sequence[Any],
    traced: Trace,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
) -> str | None:
    """Why the model fails or deviates once each of ``groups`` has lost its last unit."""
    keep = {group.name: group.units[:-1].ravel().tolist() for group in groups}
    with undisturbed(model):
        steps, error = replay(prune(model, graph, keep), example_inputs, traced.lowered)
    if error is not None:
        lines = str(error).strip().splitlines() or [""]
        return f"has a fixed length in the model's code: {type(error).__name__}: {lines[0]}"
    facts = traced.facts
    channel = connected(facts.size, [*facts.same, *facts.joined])
    removed = np.zeros(facts.size, dtype=bool)
    for group in groups:
        removed[channel[atoms_of(traced, group, group.units[-1])]] = True
    removed = removed[channel]
    for (func, factors, outputs), (func_now, factors_now, shapes) in zip(facts.steps, steps, strict=False):
        if func is not func_now or len(outputs) != len(shapes):
            break  # from here on the course depends on the data
        if factors and factors != factors_now:
            return f"sets a factor in the model's code: {factors[0]:.6g} becomes {(*factors_now, 0)[0]:.6g}"
        for axes, shape in zip(outputs, shapes, strict=True):
            for axis, length in zip(axes, shape, strict=False):
                if axis is not None and length != len(axis) - np.count_nonzero(removed[axis]):
                    return f"has a length in the model's code that does not follow it, at {func}"
    return None


def suspects(traced: Trace, graph: ChannelGraph) -> list[ChannelGroup]:
    """The prunable groups that rest on an assumption about how the code computes a size."""
    facts = traced.facts
    factors = {n for _, numbers, _ in facts.steps for n in numbers}
    roots = {n for factor in factors for n in _widths_behind(factor)}
    unit = traced.unit
    assert unit is not None
    if roots:
        free = np.zeros(facts.size, dtype=bool)
        for group in graph.prunable.values():
            free[unit[atoms_of(traced, group)]] = True
        seen = {
            id(axis): axis
            for *_, outputs in facts.steps
            for axes in outputs
            for axis in axes
            if axis is not None
        }
        if any(len(axis) in roots and free[unit[axis]].any() for axis in seen.values()):
            return list(graph.prunable.values())
    guessed = np.zeros(facts.size, dtype=bool)
    for atoms in facts.guesses:
        guessed[unit[atoms]] = True
    return [group for group in graph.prunable.values() if guessed[unit[atoms_of(traced, group)]].any()]


def atoms_of(traced: Trace, group: ChannelGroup, channels: Index | None = None) -> Atoms:
    """All parameter atoms of a group, or of some of its channels."""
    axes = {(leaf.name, d): axis for leaf in traced.leaves for d, axis in enumerate(leaf.axes)}
    parts = []
    for name, d, index in group.members:
        axis = axes[name, d]
        assert axis is not None
        parts.append(axis[index >= 0 if channels is None else np.isin(index, channels)])
    return np.concatenate(parts)


def _widths_behind(factor: float) -> list[int]:
    """Numbers of channels that a factor may have been computed from: n, 1 / n, or their square roots."""
    if factor == 0 or not np.isfinite(factor):
        return []
    candidates = [abs(factor) ** power for power in (1, -1, 2, -2)]
    return [round(n) for n in candidates if 1 < n < 1e9 and abs(n - round(n)) < 1e-6 * n]
