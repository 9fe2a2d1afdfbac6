"""From the numbers that a sampler suggests to widths on budget, and from widths to kept channels."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from autoprune.cost.budget import UNITS, Budget, Metric, figures
from autoprune.errors import BudgetError, ConfigError
from autoprune.graph import ChannelGraph
from autoprune.importance.reduce import per_unit
from autoprune.space.file import SpaceFile, match_groups, variable_name

Widths = NDArray[np.int64]
Fractions = NDArray[np.float64]

_GRID = 33  # points of one round of the search along the path; 6 rounds leave 2 / 32**6 = 2e-9 of it
_ROUNDS = 6

NEAR = 0.98  # of a budget: what a trial should use of it at least


@dataclass(frozen=True)
class Variable:
    """One number that the search sets, a share in 0..1 of what its groups may lose at most.

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
        lowest: [G], smallest width.
        step: [G], kept widths are multiples of this, or the dense width.
        importance: {group: [width]}, which channels go first; needed by `keep` alone.
        latency: milliseconds of widths [..., G], where the run has a model of them.
    """

    graph: ChannelGraph
    variables: tuple[Variable, ...]
    variable_of: NDArray[np.int64]
    max_ratio: NDArray[np.float64]
    lowest: Widths
    step: Widths
    importance: Mapping[str, NDArray[np.float64]] | None = None
    latency: Callable[[Widths], NDArray[np.float64]] | None = None

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Group names in the order of all width arrays."""
        return tuple(self.graph.cost.names)

    @cached_property
    def dense(self) -> Widths:
        """[G] dense widths."""
        return np.asarray(self.graph.cost.dense, dtype=np.int64)

    def cost(self, metric: Metric, widths: Widths) -> NDArray[np.float64]:
        """GFLOPs, millions of parameters, or predicted milliseconds of widths [..., G]."""
        if metric == "gflops":
            return np.asarray(self.graph.cost.flops(widths), dtype=np.float64) / 1e9
        if metric == "mparams":
            return np.asarray(self.graph.cost.params(widths), dtype=np.float64) / 1e6
        if self.latency is None:
            raise ValueError(f"{metric} is measured, not modelled")
        return self.latency(widths)

    def models(self, metric: Metric) -> bool:
        """Whether the cost of widths is known without building them."""
        return metric != "latency_ms" or self.latency is not None

    def budget_usage(self, widths: Widths, budgets: Sequence[Budget]) -> NDArray[np.float64]:
        """Fraction of the tightest budget that widths [..., G] use: at most 1 where all are met.

        Budgets on the latency are left out where it is measured only, and not modelled.
        """
        used = np.zeros(np.shape(widths)[:-1])
        for budget in budgets:
            if self.models(budget.metric):
                used = np.maximum(used, self.cost(budget.metric, widths) / budget.limit)
        return used

    def widths(self, fractions: Fractions) -> Widths:
        """Widths [..., G] of fractions [..., V] in 0..1: dense * (1 - fraction * max_ratio), rounded."""
        return self._round(self._targets(np.asarray(fractions, dtype=np.float64)))

    def fractions(self, widths: Widths) -> Fractions:
        """Shares [V] that give widths [G]: exact where a variable has one group, else the groups' mean."""
        room = self.dense * self.max_ratio
        each = np.divide(self.dense - widths, room, out=np.zeros(len(room)), where=room > 0)
        own = self.variable_of >= 0
        totals = np.bincount(self.variable_of[own], weights=each[own], minlength=len(self.variables))
        counts = np.bincount(self.variable_of[own], minlength=len(self.variables))
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
        """Puts a suggestion on budget, before any work is done on it.

        The vector x is moved along a path of falling cost: s * x for s in 0..1, then x + (s - 1) * (1 - x)
        for s in 1..2. The least s whose widths meet every budget is found by nested grids (a bisection by
        32 at once). What rounding left over is filled one step of one group at a time, first where the
        rounded width lies furthest below its share, until no group has room for a step; so groups that share
        a variable can end a few steps apart. Where steps are so dear that this leaves more than 2% of the
        budget, one group is narrowed a step to let others be filled, as long as that comes nearer.

        So a vector whose own widths meet the budgets and have no room for a step comes back unchanged.

        Args:
            fractions: [V] in 0..1.
            budgets: with none on a cost that is modelled, the shares' own widths are returned.

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
        filled = self._fill(self._round(targets), targets, budgets)
        if np.array_equal(filled, self.widths(fractions)):
            return filled
        return self._closer(filled, targets, budgets)

    def keep(self, widths: Widths) -> dict[str, tuple[int, ...]]:
        """The most important units of each group that loses any, as rising channel indices.

        Of units that score the same, the first stays.

        Raises:
            ValueError: the space was resolved without importance.
        """
        if self.importance is None:
            raise ValueError("the space has no importance; give it to resolve()")
        kept = {}
        for name, width, dense in zip(self.names, widths, self.dense, strict=True):
            group = self.graph.groups[name]
            if width < dense:
                scores = per_unit(self.importance[name], group)
                units = np.argsort(-scores, kind="stable")[: int(width) // group.unit]
                kept[name] = tuple(int(channel) for channel in np.sort(group.units[units].ravel()))
        return kept

    def as_dict(self, widths: Widths) -> dict[str, int]:
        """Widths by group name, as `ChannelGraph.gflops` takes them."""
        return {name: int(width) for name, width in zip(self.names, widths, strict=True)}

    def raised(self, widths: Widths) -> Widths:
        """[G] widths one step up, the dense width at most; groups that stay whole do not move."""
        return np.where(self.max_ratio > 0, np.minimum(widths + self.step, self.dense), widths)

    def _targets(self, fractions: Fractions) -> NDArray[np.float64]:
        """Unrounded widths [..., G] of fractions [..., V]."""
        padded = np.concatenate(
            [fractions, np.zeros((*fractions.shape[:-1], 1))], axis=-1
        )  # -1 reads the zero
        return np.asarray(self.dense * (1 - padded[..., self.variable_of] * self.max_ratio))

    def _round(self, targets: NDArray[np.float64]) -> Widths:
        below = (self.dense - 1) // self.step * self.step  # the widest one that is not dense
        nearest = np.minimum(np.floor(targets / self.step + 0.5).astype(np.int64) * self.step, below)
        return np.where(2 * targets >= below + self.dense, self.dense, np.maximum(nearest, self.lowest))

    def _closer(self, widths: Widths, targets: NDArray[np.float64], budgets: Sequence[Budget]) -> Widths:
        while (used := float(self.budget_usage(widths, budgets))) < NEAR:
            lower = np.maximum((widths - 1) // self.step * self.step, self.lowest)
            tried = []
            for group in np.flatnonzero(lower < widths):
                narrowed = widths.copy()
                narrowed[group] = lower[group]
                tried.append(self._fill(narrowed, targets, budgets, without=int(group)))
            found = self.budget_usage(np.stack(tried), budgets) if tried else np.zeros(1)
            if found.max() <= used:
                break
            widths = tried[int(np.argmax(found))]
        return widths

    def _fill(
        self,
        widths: Widths,
        targets: NDArray[np.float64],
        budgets: Sequence[Budget],
        without: int | None = None,
    ) -> Widths:
        # Costs grow with every width and with products of two, so a step that does not fit now never will.
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


def resolve(
    file: SpaceFile,
    graph: ChannelGraph,
    importance: Mapping[str, NDArray[np.float64]] | None = None,
) -> Space:
    """Lays a search space over a graph.

    A group's step is the least common multiple of `round_to` and its unit, or its unit where that is wider
    than the group. Its smallest width is the least multiple of the step, or else the dense width, that is at
    least `min_width` and at least (1 - max_ratio) of the dense width.

    Raises:
        ConfigError: a glob matches nothing, or nothing is left to prune.
    """
    matches = {match.group.name: match for match in match_groups(file, graph)}
    names, dense = tuple(graph.cost.names), np.asarray(graph.cost.dense, dtype=np.int64)
    step, lowest, max_ratio = np.ones_like(dense), dense.copy(), np.zeros(len(dense))
    variable_of = np.full(len(dense), -1, dtype=np.int64)
    members: dict[str, list[str]] = {}
    for place, name in enumerate(names):
        match = matches.get(name)
        width, unit = int(dense[place]), graph.groups[name].unit
        common = int(np.lcm(unit, file.round_to if match is None else match.round_to))
        step[place] = common if common <= width else unit
        if match is None:
            continue
        floor = max(match.min_width, unit, width * (1 - match.max_ratio) - 1e-9)
        lowest[place] = min(width, int(np.ceil(floor / step[place])) * int(step[place]))
        if lowest[place] < width:
            max_ratio[place] = match.max_ratio
            variable = variable_name(match, file.granularity)
            members.setdefault(variable, []).append(name)
            variable_of[place] = list(members).index(variable)
    if not members:
        raise ConfigError(
            "space: nothing to prune, every group is as narrow as min_width, round_to and max_ratio let it "
            "be; lower min_width or round_to, or raise max_ratio"
        )
    ratio_of = dict(zip(names, max_ratio.tolist(), strict=True))
    variables = tuple(
        Variable(name, tuple(groups), max(ratio_of[group] for group in groups))
        for name, groups in members.items()
    )
    return Space(graph, variables, variable_of, max_ratio, lowest, step, importance)


def _along(fractions: Fractions, s: NDArray[np.float64]) -> Fractions:
    """Points [S, V] of the path through ``fractions`` [V] at ``s`` [S] in 0..2; those themselves at 1."""
    s = s[:, None]
    return np.where(s <= 1, s * fractions, fractions + (s - 1) * (1 - fractions))
