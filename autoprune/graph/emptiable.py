"""Finds the groups that can keep no channels at all: another path carries the signal, and the code runs."""

import traceback
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import nn

from autoprune.errors import ModelError
from autoprune.graph.groups import ChannelGraph, ChannelGroup
from autoprune.graph.trace import Trace, replay
from autoprune.graph.verify import find_culprits
from autoprune.graph.workbench import Workbench


def with_emptiable(
    bench: Workbench, example_inputs: Sequence[Any], traced: Trace, graph: ChannelGraph
) -> ChannelGraph:
    """The graph with `can_empty` and `empty_reason` of each group.

    A group on which all that a prediction layer or an output sees depends can't be emptied. Neither can one
    without which the model's code fails: the pruned copy is run, with as many groups emptied at once as
    possible.
    """
    names = list(graph.prunable)
    reasons = _cut_alone(graph, names)
    graph = _marked(graph, reasons)
    untried = list(graph.emptiable)
    while untried:
        together = largest_set(graph, untried)

        failed_in: list[str] = []  # names of modules, the innermost first

        def problem_of(groups: Sequence[ChannelGroup], graph: ChannelGraph = graph) -> str | None:
            failed_in.clear()
            keep: dict[str, Sequence[int]] = {group.name: () for group in groups}
            try:
                with bench.pruned(graph, keep) as pruned:
                    error = replay(pruned, example_inputs, traced)[1]
                    failed_in.extend(_failed_in(pruned, error))
            except ModelError as refusal:
                return f"can't be tried: {refusal}"
            if error is None:
                return None
            lines = str(error).strip().splitlines() or [""]
            return f"is needed by the model's code, which fails without: {type(error).__name__}: {lines[0]}"

        def likely(groups: Sequence[ChannelGroup]) -> Sequence[ChannelGroup]:
            inside = ([g for g in groups if any(m.tensor.startswith(f"{name}.") for m in g.members)] for name in failed_in)
            return next((found for found in inside if found), [])

        failing = find_culprits(problem_of, [graph.groups[name] for name in together], likely)
        reasons |= {group.name: problem for group, problem in failing}
        graph = _marked(graph, reasons)
        untried = [name for name in untried if name not in together]
    return graph


def _failed_in(model: nn.Module, error: Exception | None) -> list[str]:
    """The names of the modules whose code raised the error, the innermost first."""
    if error is None:
        return []
    names = {id(module): name for name, module in model.named_modules()}
    owners = [id(frame.f_locals.get("self")) for frame, _ in traceback.walk_tb(error.__traceback__)]
    return [names[owner] for owner in reversed(owners) if names.get(owner)]


def largest_set(graph: ChannelGraph, names: Iterable[str]) -> list[str]:
    """As many of these groups as can be emptied together, taken in their order."""
    names = list(names)
    if graph.paths.cut(names) is None:
        return names
    together: list[str] = []
    for name in names:
        if graph.paths.cut([*together, name]) is None:
            together.append(name)
    return together


def _cut_alone(graph: ChannelGraph, names: Sequence[str]) -> dict[str, str]:
    """Why groups can't be emptied, each alone: what would not see the input any more."""
    count = len(names) + 1  # the last set is empty: what sees nothing of the input anyway does not count
    emptied = {name: 1 << number for number, name in enumerate(names)}
    lost = [(what, bits) for what, bits in graph.paths.lost(emptied, count) if not bits >> len(names)]
    used = graph.paths.used()
    reasons: dict[str, str] = {}
    for name, bit in emptied.items():
        what = next((what for what, bits in lost if bits & bit), None)
        if what is not None:
            reasons[name] = f"carries all that {what}"
        elif name not in used:
            reasons[name] = "does not carry the input's signal to an output"
    return reasons


def _marked(graph: ChannelGraph, reasons: Mapping[str, str]) -> ChannelGraph:
    groups = {
        name: replace(
            group,
            can_empty=group.prunable and name not in reasons,
            empty_reason=reasons.get(name, group.reason),
        )
        for name, group in graph.groups.items()
    }
    return replace(graph, groups=groups)
