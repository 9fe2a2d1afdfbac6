"""Tests what the rules had to assume: that the model's code computes sizes from the tensors it gets.

A literal in the code (`view(n, 256, -1)`, `zeros(n, 256)`) looks like any other number in a trace. A pruned
copy that runs through the same ops, with the lengths that the labels predict, contains none. Numbers that are
computed from widths (`C ** -0.5`) change no length: numbers.py sees to them.

Code that branches on values may run other ops in a pruned model, so masked models are traced where it does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import nn

from autoprune.errors import ModelError
from autoprune.graph.culprits import failed_in, find_culprits, inside
from autoprune.graph.deviations import (
    FIXED,
    STAYS,
    Lengths,
    atoms_of,
    common_steps,
    deviation,
    failure_text,
    kept_without,
)
from autoprune.graph.groups import ChannelGraph, ChannelGroup
from autoprune.graph.numbers import with_fixed_numbers
from autoprune.graph.solve import solve
from autoprune.graph.surgery import mask
from autoprune.graph.workbench import Workbench
from autoprune.ops.shape_calls import CorrectedShapes, Misfit, with_siblings
from autoprune.tracing.replays import replay, retrace
from autoprune.tracing.size_attributes import Attempts, SizeAttribute
from autoprune.tracing.trace import Trace

_FRACTION = 0.5


def verified(
    model: nn.Module, example_inputs: Sequence[Any], traced: Trace, bench: Workbench
) -> ChannelGraph:
    """The graph of ``traced``, in which the groups that the model's code needs whole are frozen.

    ``bench`` is of the model.
    """
    graph = solve(traced)
    if traced.may_branch:
        graph = _with_other_branches(model, example_inputs, traced, graph)
    groups = suspects(traced, graph)

    failed: Sequence[str] = ()

    def problem_of(subset: Sequence[ChannelGroup]) -> str | None:
        nonlocal failed
        text, failed = _problem(model, bench, example_inputs, traced, graph, subset)
        return text

    def likely(subset: Sequence[ChannelGroup]) -> Sequence[ChannelGroup]:
        return _sized(traced, attempts, subset) or inside(subset, failed)

    attempts: Attempts | None = None
    fraction = 0.0
    while groups:
        misfits: list[Misfit] = []
        problem, _ = _problem(model, bench, example_inputs, traced, graph, groups, misfits, fraction)
        named: list[tuple[ChannelGroup, str]] = []
        if misfits:
            fraction = _FRACTION  # an attribute must follow any width
            attempts = attempts or Attempts(bench.names())
            exhausted = with_siblings(bench.modules(), traced.constraints.shape_calls, attempts.next(misfits))
            named, unblamed = _blamed(traced, groups, exhausted)
            dropped = [attempts.drop(misfit.modules) for misfit in unblamed]
            if not named and exhausted and not any(dropped):
                names = bench.names()
                near = inside(
                    groups, [names[id(module)] for misfit in exhausted for module in misfit.modules]
                )
                named = find_culprits(problem_of, near) if near else []
                named = named or find_culprits(problem_of, groups)
                if not named and len(exhausted) >= len(misfits):
                    break  # nothing is left to try: the next run would be this one again
        elif attempts is not None and (apart := _untied(traced, attempts)):
            _tie(traced, attempts, apart)
        elif problem is not None:
            named = find_culprits(problem_of, groups, likely)
            if not named:
                break
        else:
            break
        for group, text in named:
            traced.constraints.freeze(atoms_of(traced, group), text)
        traced.sizes = attempts.sizes if attempts is not None else []
        graph = solve(traced)
        groups = [group for group in suspects(traced, graph) if group.prunable]
    return with_fixed_numbers(model, example_inputs, traced, bench, graph)


def _sized(traced: Trace, attempts: Attempts | None, groups: Sequence[ChannelGroup]) -> list[ChannelGroup]:
    """The groups that attributes follow: where the code computes with a width, it is often one of theirs."""
    unit = traced.unit
    if attempts is None or unit is None:
        return []
    followed = [root for size in attempts.sizes for root in np.unique(unit[size.axis])]
    return [group for group in groups if np.isin(unit[atoms_of(traced, group, axes=1)], followed).any()]


def _untied(traced: Trace, attempts: Attempts) -> list[tuple[SizeAttribute, SizeAttribute]]:
    """Pairs of uses of one attribute for axes that may shrink differently."""
    unit = traced.unit
    assert unit is not None
    return [
        (one, other)
        for one, other in attempts.shared()
        if set(unit[one.axis].tolist()) != set(unit[other.axis].tolist())
    ]


def _tie(traced: Trace, attempts: Attempts, pairs: Sequence[tuple[SizeAttribute, SizeAttribute]]) -> None:
    """Makes axes that follow one attribute lose channels together; where their lengths differ, they stay."""
    equal = [(one, other) for one, other in pairs if len(one.axis) == len(other.axis)]
    for one, other in equal:
        traced.constraints.tie(np.stack([one.axis, other.axis], axis=1))
    for _, other in [] if equal else pairs:  # ties may settle them
        traced.constraints.freeze(other.axis, f"has a length that comes from `{other.name}`, as others have")
        attempts.give_up(other)


def _blamed(
    traced: Trace, groups: Sequence[ChannelGroup], misfits: Sequence[Misfit]
) -> tuple[list[tuple[ChannelGroup, str]], list[Misfit]]:
    """The groups whose lengths the code does not follow, each with the first such call; calls with none."""
    unit = traced.unit
    assert unit is not None
    group_of = {int(root): group for group in groups for root in unit[atoms_of(traced, group, axes=1)]}
    blamed: dict[str, tuple[ChannelGroup, str]] = {}
    unblamed = []
    for misfit in misfits:
        reason = f"has {FIXED}: {misfit.text}" if misfit.text else f"has {STAYS} {misfit.call.func.__name__}"
        axes = [axis for axis, _ in misfit.changed if axis is not None]
        roots = [int(root) for axis in axes for root in np.unique(unit[axis]) if int(root) in group_of]
        for root in roots:
            blamed.setdefault(group_of[root].name, (group_of[root], reason))
        if not roots:
            unblamed.append(misfit)
    return list(blamed.values()), unblamed


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
        if not len(dense_steps) == len(steps) == common_steps(dense_steps, steps):
            traced.constraints.merge(masked.constraints)
    return solve(traced)


def _problem(
    model: nn.Module,
    bench: Workbench,
    example_inputs: Sequence[Any],
    traced: Trace,
    graph: ChannelGraph,
    groups: Sequence[ChannelGroup],
    misfits: list[Misfit] | None = None,
    fraction: float = 0,
) -> tuple[str | None, Sequence[str]]:
    """Why the model fails or deviates once each of ``groups`` has lost its last unit.

    Returns the reason, and the modules in which it fails, the innermost first.

    With ``misfits``, calls that have fixed lengths go into it and are corrected. With ``fraction``, as many
    of the units are lost as that says.
    """
    lost = {group.name: group.units[min(-1, -int(fraction * len(group.units))) :] for group in groups}
    length = Lengths(traced, groups, lost)
    corrected = None
    if misfits is not None:
        corrected = CorrectedShapes(traced.constraints.shape_calls, bench.names(), length)
    keep = kept_without(groups, lost)
    with bench.pruned(graph, keep) as pruned:
        steps, error = replay(pruned, example_inputs, traced, corrected)
        modules = () if error is None else failed_in(pruned, error)
    if misfits is not None and corrected is not None:
        misfits += corrected.misfits
    if error is not None:
        return failure_text(error), modules
    problem, common = deviation(traced, length, steps)
    if common is None and (problem is None or not traced.constraints.by_values):
        return problem, ()
    # Numbers of boxes, sizes of crops and branches depend on values, which differ from the dense model's.
    # The masked model has the same values.
    masked = retrace(mask(model, graph, keep), example_inputs, traced)
    problem, common = deviation(masked, Lengths(masked, groups, lost), steps)
    if problem is not None or common is None:
        return problem, ()
    branches = common_steps(traced.constraints.steps, masked.constraints.steps) > common
    return "decides in the model's code what is run" if branches else None, ()


def suspects(traced: Trace, graph: ChannelGraph) -> list[ChannelGroup]:
    """The prunable groups that depend on an assumption about how the code computes a size."""
    unit = traced.unit
    assert unit is not None
    # Every unit of a group has channels on each of its axes, so one axis is enough.
    units = {name: unit[atoms_of(traced, group, axes=1)] for name, group in graph.prunable.items()}
    guessed = np.zeros(traced.constraints.size, dtype=bool)
    for atoms in traced.constraints.guesses:
        guessed[unit[atoms]] = True
    return [group for name, group in graph.prunable.items() if guessed[units[name]].any()]
