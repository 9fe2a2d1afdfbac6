"""Finds the groups that can keep no channels at all: another path carries the signal, and the code runs."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from autoprune.errors import ModelError
from autoprune.graph.culprits import failed_in, find_culprits, inside
from autoprune.graph.deviations import error_line
from autoprune.graph.empty_calls import EmptyCalls
from autoprune.graph.groups import ChannelGraph, ChannelGroup
from autoprune.graph.workbench import Workbench
from autoprune.tracing.replays import run_again
from autoprune.tracing.trace import Trace


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
        trial = _Trial(bench, example_inputs, traced, graph)
        groups = [graph.groups[name] for name in together]
        failing = trial.failing(groups)
        if not failing:
            untried = [name for name in untried if name not in together]
            continue
        reasons |= {group.name: problem for group, problem in failing}
        graph = _marked(graph, reasons)
        untried = [name for name in untried if name in graph.emptiable]
    return graph


class _Trial:
    """Runs the pruned copy without groups.

    Args:
        bench, example_inputs, traced, graph: of the model.
    """

    def __init__(
        self, bench: Workbench, example_inputs: Sequence[Any], traced: Trace, graph: ChannelGraph
    ) -> None:
        self._bench, self._example_inputs, self._traced, self._graph = bench, example_inputs, traced, graph
        self._failed_in: list[str] = []

    def failing(self, groups: Sequence[ChannelGroup]) -> list[tuple[ChannelGroup, str]]:
        """Groups that the code needs, with the reason; none if it runs without all of them."""
        failures: list[tuple[frozenset[str], Exception]] = []
        problem = self.problem_of(groups, failures)
        failing: dict[str, tuple[ChannelGroup, str]] = {}
        for names, error in failures:
            met = [group for group in groups if group.name in names]
            culprits = (
                [(met[0], _needed(error))]
                if len(met) == 1
                else find_culprits(self.problem_of, met)
                if met
                else []
            )
            failing |= {group.name: (group, text) for group, text in culprits}
        if problem is not None and not failing:
            culprits = find_culprits(self.problem_of, groups, lambda some: inside(some, self._failed_in))
            failing |= {group.name: (group, text) for group, text in culprits}
        return list(failing.values())

    def problem_of(
        self, groups: Sequence[ChannelGroup], failures: list[tuple[frozenset[str], Exception]] | None = None
    ) -> str | None:
        """Why the code does not run without the groups; with ``failures``, calls that fail go there."""
        self._failed_in = []
        made = {
            group.name: {
                m.tensor for m, role in zip(group.members, group.roles, strict=True) if role != "consumer"
            }
            for group in groups
        }
        try:
            with self._bench.pruned(self._graph, {group.name: () for group in groups}) as pruned:
                calls = None
                if failures is not None:
                    calls = EmptyCalls(pruned, lambda name: [g for g, names in made.items() if name in names])
                error = run_again(pruned, self._example_inputs, self._traced, calls)
                if calls is not None and failures is not None:
                    failures += calls.failures
                if error is not None:
                    self._failed_in = failed_in(pruned, error)
        except ModelError as refusal:
            return f"can't be tried: {refusal}"
        return None if error is None else _needed(error)


def _needed(error: Exception) -> str:
    return f"is needed by the model's code, which fails without: {error_line(error)}"


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
