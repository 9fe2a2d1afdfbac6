"""Tries out what the rules had to assume: that the code computes its sizes from the tensors it gets.

A literal in the code (`view(n, 256, -1)`, `zeros(n, 256)`) and a factor computed from a width
(`C ** -0.5`) look like any other number in a trace. A pruned copy that runs through the same ops, with the
lengths that the labels promise and the same factors, contains neither.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from autoprune.graph.groups import ChannelGraph, ChannelGroup
from autoprune.graph.solve import atoms_of, connected, solve, suspects
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
