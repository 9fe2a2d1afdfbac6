"""From the fractions that a sampler suggests to widths within the budgets, and on to kept channels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autoprune.cost.budget import UNITS, Budget, Metric, figures
from autoprune.errors import BudgetError
from autoprune.graph import ChannelGraph
from autoprune.importance.reduce import most_important
from autoprune.space.closure import Closure

Widths = NDArray[np.int64]
Fractions = NDArray[np.float64]
Scores = Mapping[str, NDArray[np.float64]]
"""Importance: {group: [width]}, one score per channel."""

_GRID = 33  # points of one round of the search along the path; after 6 rounds, 2 / 32**6 = 2e-9 of it remain
_ROUNDS = 6

NEAR = 0.98  # fraction of a budget that a trial should use at least


@dataclass(frozen=True)
class Variable:
    """One number that the search sets: a fraction in 0..1 of the most that its groups may lose.

    Attributes:
        name: unique in the space.
        groups: the channel groups it prunes.
        max_ratio: the largest pruning ratio among them.
    """

    name: str
    groups: tuple[str, ...]
    max_ratio: float


@dataclass(frozen=True)
class Space:
    """A search space on one graph. Arrays over groups follow `graph.cost.names` (G of them); V variables.

    Attributes:
        graph: the channel groups and their cost model.
        variables: what a trial sets.
        variable_of: [G], each group's variable, -1 where it stays whole.
        max_ratio: [G], largest pruning ratio, 0 where it stays whole.
        lowest: [G], smallest width; 0 where the group may be emptied.
        step: [G], kept widths are multiples of this, or the dense width.
        importance: {group: [width]}, which channels are removed first; only `keep` needs it.
        latency: predicts milliseconds [...] of widths [..., G]; ``None`` where the run has no latency model.
        least: [G], smallest width but 0; by default `lowest`.
    """

    graph: ChannelGraph
    variables: tuple[Variable, ...]
    variable_of: NDArray[np.int64]
    max_ratio: NDArray[np.float64]
    lowest: Widths
    step: Widths
    importance: Scores | None = None
    latency: Callable[[Widths], NDArray[np.float64]] | None = None
    least: Widths = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    def __post_init__(self) -> None:  # noqa: D105
        if not len(self.least):
            object.__setattr__(self, "least", self.lowest)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Group names in the order of all width arrays."""
        return tuple(self.graph.cost.names)

    @cached_property
    def dense(self) -> Widths:
        """[G] dense widths."""
        return np.asarray(self.graph.cost.dense, dtype=np.int64)

    @cached_property
    def closed(self) -> Closure:
        """Adds to widths with emptied groups what serves nothing without them."""
        return Closure(self.graph, self.max_ratio >= 1)

    def cost(self, metric: Metric, widths: Widths) -> NDArray[np.float64]:
        """GFLOPs, millions of parameters, or predicted milliseconds [...] of widths [..., G].

        Raises:
            ValueError: the latency is asked for, and the space has no model of it.
        """
        widths = self.closed(widths)
        if metric == "gflops":
            return np.asarray(self.graph.cost.flops(widths), dtype=np.float64) / 1e9
        if metric == "mparams":
            return np.asarray(self.graph.cost.params(widths), dtype=np.float64) / 1e6
        if self.latency is None:
            raise ValueError(f"{metric} is measured, not modeled")
        return self.latency(widths)

    def models(self, metric: Metric) -> bool:
        """Whether the cost of widths can be computed without building a network."""
        return metric != "latency_ms" or self.latency is not None

    def budget_usage(self, widths: Widths, budgets: Sequence[Budget]) -> NDArray[np.float64]:
        """Fraction [...] of the tightest budget that widths [..., G] use: at most 1 where all are met.

        Budgets on the latency are omitted where the space has no model of it.
        """
        used = np.zeros(np.shape(widths)[:-1])
        for budget in budgets:
            if self.models(budget.metric):
                used = np.maximum(used, self.cost(budget.metric, widths) / budget.limit)
        return used

    def widths(self, fractions: Fractions) -> Widths:
        """Widths [..., G] of fractions [..., V] in 0..1: dense * (1 - fraction * max_ratio), rounded.

        With emptied groups they are `closed`.
        """
        return self.closed(self._round(self._targets(np.asarray(fractions, dtype=np.float64))))

    def fractions(self, widths: Widths) -> Fractions:
        """Fractions [V] that give widths [G]: exact where a variable has one group, else the groups' mean."""
        largest = self.dense * self.max_ratio
        each = np.divide(self.dense - widths, largest, out=np.zeros(len(largest)), where=largest > 0)
        pruned = self.variable_of >= 0
        totals = np.bincount(self.variable_of[pruned], weights=each[pruned], minlength=len(self.variables))
        counts = np.bincount(self.variable_of[pruned], minlength=len(self.variables))
        return np.clip(totals / counts, 0.0, 1.0)

    def check(self, budgets: Sequence[Budget]) -> None:
        """Refuses budgets that no policy of the space meets, or that the dense detector meets.

        Raises:
            BudgetError: says the smallest cost reachable, or the dense one.
        """
        for budget in budgets:
            if not self.models(budget.metric):
                continue
            unit = UNITS[budget.metric]
            least, dense = (float(self.cost(budget.metric, w)) for w in (self.lowest, self.dense))
            if least > budget.limit:
                raise BudgetError(
                    f"budget_{budget.metric}: {budget} can't be reached, the smallest in this search space "
                    f"is {figures(least)} {unit}; raise the budget, or max_ratio in the space"
                )
            if budget.limit > dense:
                raise BudgetError(
                    f"budget_{budget.metric}: {budget} is above the dense detector, which has "
                    f"{figures(dense)} {unit}; give a smaller number"
                )

    def project_to_budget(self, fractions: Fractions, budgets: Sequence[Budget]) -> Widths:
        """Projects a suggestion onto the budgets, before any work is done on it.

        The vector x is moved along a path of falling cost: s * x for s in 0..1, then x + (s - 1) * (1 - x)
        for s in 1..2. The least s whose widths meet every budget is found by nested grids (a 32-fold
        bisection). Rounding leaves some of the budget unused. It is filled by one step of one group at a
        time, first the group whose width lies furthest below its unrounded one, until no further step fits;
        so groups that share a variable can end a few steps apart. Where steps are so large that more than 2%
        of the budget remains, one group is narrowed a step so that others can be filled, as long as that
        uses more of the budget.

        A vector whose own widths meet the budgets and leave no room for a step is not changed.

        Args:
            fractions: [V] in 0..1.
            budgets: where none of them is on a modeled cost, the widths of ``fractions`` are returned.

        Returns:
            [G] widths that meet every budget.

        Raises:
            BudgetError: see `check`.
        """
        fractions = np.asarray(fractions, dtype=np.float64)
        if not any(self.models(budget.metric) for budget in budgets):
            return self.widths(fractions)
        self.check(budgets)
        low, high = 0.0, 2.0
        for _ in range(_ROUNDS):
            grid = np.linspace(low, high, _GRID)
            fits = self.budget_usage(self.widths(_along(fractions, grid)), budgets) <= 1
            first = int(np.argmax(fits)) if fits.any() else _GRID - 1
            low, high = float(grid[max(first - 1, 0)]), float(grid[first])
        targets = self._targets(_along(fractions, np.array([high])))[0]
        filled = self._fill(self.closed(self._round(targets)), targets, budgets)
        if np.array_equal(filled, self.widths(fractions)):
            return filled
        return self._use_more(filled, targets, budgets)

    def keep(self, widths: Widths) -> dict[str, tuple[int, ...]]:
        """Kept channels of each group that loses any: its most important units, as rising channel indices.

        Of units with the same score, the first is kept.

        Raises:
            ValueError: the space was resolved without importance.
        """
        if self.importance is None:
            raise ValueError("the space has no importance; give it to resolve()")
        kept = {}
        for name, width, dense in zip(self.names, self.closed(widths), self.dense, strict=True):
            group = self.graph.groups[name]
            if width < dense:
                kept[name] = most_important(self.importance[name], group, int(width))
        return kept

    def as_dict(self, widths: Widths) -> dict[str, int]:
        """Widths [G] by group name, as `ChannelGraph.gflops` takes them."""
        return {name: int(width) for name, width in zip(self.names, widths, strict=True)}

    def as_array(self, widths: Mapping[str, int]) -> Widths:
        """Widths by group name as an array [G]; the inverse of `as_dict`."""
        return np.array([widths[name] for name in self.names], dtype=np.int64)

    def raised(self, widths: Widths) -> Widths:
        """[G] widths one step up, the dense width at most; groups that stay whole or are emptied stay so."""
        moves = (self.max_ratio > 0) & (widths > 0)
        return np.where(moves, np.minimum(widths + self.step, self.dense), widths)

    def lowered(self, widths: Widths) -> Widths:
        """[G] widths one step down, `least` at least; groups that are emptied stay so."""
        return np.where(widths > 0, np.maximum((widths - 1) // self.step * self.step, self.least), 0)

    def _targets(self, fractions: Fractions) -> NDArray[np.float64]:
        """Unrounded widths [..., G] of fractions [..., V]."""
        zero = np.zeros((*fractions.shape[:-1], 1))  # what a `variable_of` of -1 reads
        padded = np.concatenate([fractions, zero], axis=-1)
        return np.asarray(self.dense * (1 - padded[..., self.variable_of] * self.max_ratio))

    def _round(self, targets: NDArray[np.float64]) -> Widths:
        below = (self.dense - 1) // self.step * self.step  # the widest one that is not dense
        nearest = np.minimum(np.floor(targets / self.step + 0.5).astype(np.int64) * self.step, below)
        widths = np.where(2 * targets >= below + self.dense, self.dense, np.maximum(nearest, self.least))
        return np.where((self.lowest < self.least) & (2 * targets < self.least), 0, widths)

    def _use_more(self, widths: Widths, targets: NDArray[np.float64], budgets: Sequence[Budget]) -> Widths:
        while (used := float(self.budget_usage(widths, budgets))) < NEAR:
            lower = self.lowered(widths)
            tried = []
            for group in np.flatnonzero(lower < widths):
                narrowed = widths.copy()
                narrowed[group] = lower[group]
                tried.append(self._fill(narrowed, targets, budgets, without=int(group)))
            usages = self.budget_usage(np.stack(tried), budgets) if tried else np.zeros(1)
            if usages.max() <= used:
                break
            widths = tried[int(np.argmax(usages))]
        return widths

    def _fill(
        self,
        widths: Widths,
        targets: NDArray[np.float64],
        budgets: Sequence[Budget],
        without: int | None = None,
    ) -> Widths:
        # Costs grow with every width, so a step that does not fit now never will.
        open_groups = np.flatnonzero(self.raised(widths) > widths)
        if without is not None:
            open_groups = open_groups[open_groups != without]
        while len(open_groups):
            raised = np.repeat(widths[None], len(open_groups), axis=0)
            raised[np.arange(len(open_groups)), open_groups] = self.raised(widths)[open_groups]
            fits = self.budget_usage(raised, budgets) <= 1
            open_groups, raised = open_groups[fits], raised[fits]
            if len(open_groups):
                shortage = (targets - widths)[open_groups] / self.step[open_groups]
                widths = raised[int(np.argmax(shortage))]
                open_groups = open_groups[widths[open_groups] < self.dense[open_groups]]
        return widths


def _along(fractions: Fractions, s: NDArray[np.float64]) -> Fractions:
    """Points [S, V] of the path through ``fractions`` [V] at ``s`` [S] in 0..2; ``fractions`` itself at 1."""
    s = s[:, None]
    return np.where(s <= 1, s * fractions, fractions + (s - 1) * (1 - fractions))
