"""Warm starts: the policies that one-shot methods end with, so that the search begins there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.cost.budget import Budget
from autoprune.importance.reduce import LOSS_UNITS, comparable, per_unit
from autoprune.search.widths import Shares, Space, Widths

_LEVELS = 129  # shares tried for a variable of several groups


@dataclass(frozen=True)
class WarmStart:
    """A policy to try first.

    Attributes:
        name: how it was made: ``uniform``, ``greedy taylor``, ``global taylor``, …
        shares: [V], what to enqueue; `Space.fit(shares, budgets)` gives exactly ``widths``.
        widths: [G].
    """

    name: str
    shares: Shares
    widths: Widths


def warm_starts(
    space: Space, importances: Mapping[str, Mapping[str, NDArray[np.float64]]], budgets: Sequence[Budget]
) -> list[WarmStart]:
    """The uniform policy, and for each criterion the greedy and the global one; no widths twice.

    Only scores in units of the loss are weighed against cost. Others have no scale across groups, and the
    order by cost would empty the dearest groups first.

    Args:
        space: the search space.
        importances: {criterion: {group: [width]}}.
        budgets: upper bounds, all to be met.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    found = [uniform(space, budgets)]
    for criterion, scores in importances.items():
        orders = (True, False) if criterion in LOSS_UNITS else (False,)
        found += [greedy(space, scores, budgets, criterion, per_cost) for per_cost in orders]
    return [
        start
        for place, start in enumerate(found)
        if not any(np.array_equal(start.widths, earlier.widths) for earlier in found[:place])
    ]


def uniform(space: Space, budgets: Sequence[Budget]) -> WarmStart:
    """The same pruning ratio for every group, as far as each one's largest ratio lets it.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    space.check(budgets)
    largest = np.array([variable.max_ratio for variable in space.variables])
    ratios = np.linspace(0.0, 1.0, 1001)[:, None]
    shares = np.minimum(ratios / largest, 1.0)
    fits = space.load(space.widths(shares), budgets) <= 1
    return _start("uniform", space, shares[int(np.argmax(fits))], budgets)


def greedy(
    space: Space,
    importance: Mapping[str, NDArray[np.float64]],
    budgets: Sequence[Budget],
    criterion: str = "taylor",
    per_cost: bool = True,
) -> WarmStart:
    """Takes the step with the least importance per cost, again and again, until the budgets are met.

    The order of Group Fisher pruning (Liu et al., ICML 2021), on the cost model: a step of one variable
    removes its groups' next least important units; its cost is what it saves at the present widths, as a
    share of the budgets that are not met yet. Then the steps with the most importance per cost are taken
    back while they fit. Scores that are not in units of the loss are first divided by their group's mean.

    With ``per_cost`` off, importance is taken per channel, whatever the channel costs: the global ranking of
    DepGraph (Fang et al., CVPR 2023). It goes less far in single dear groups, which the sum of scores, blind
    to what channels of a group do together, rates too low: on a RetinaNet-R18 at 33% of its GFLOPs it kept
    0.18 mAP before any recovery, the order by cost 0.11.

    Args:
        space: the search space.
        importance: {group: [width]}, none negative.
        budgets: upper bounds, all to be met.
        criterion: what scored the channels; names the start and decides whether scores compare across groups.
        per_cost: weigh importance against cost, or against the number of channels.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    space.check(budgets)
    ladders = _ladders(space, comparable(importance, criterion))
    level = np.zeros(len(ladders), dtype=np.int64)
    widths = space.dense.copy()
    while space.load(widths, budgets) > 1:
        down = [v for v, ladder in enumerate(ladders) if level[v] + 1 < len(ladder.shares)]
        tried = np.stack([ladders[v].apply(widths, level[v] + 1) for v in down])
        lost = np.array([np.diff(ladders[v].removed)[level[v]] for v in down])
        saved = _excess(space, widths, budgets) - _excess(space, tried, budgets)
        if not per_cost:
            saved = np.where(saved > 0, (widths - tried).sum(axis=1), 0)
        chosen = int(np.argmin(np.divide(lost, saved, out=np.full(len(down), np.inf), where=saved > 0)))
        level[down[chosen]] += 1
        widths = tried[chosen]
    while True:
        up = [v for v in range(len(ladders)) if level[v] > 0]
        tried = np.stack([ladders[v].apply(widths, level[v] - 1) for v in up])
        fits = space.load(tried, budgets) <= 1
        if not fits.any():
            break
        gained = np.array([np.diff(ladders[v].removed)[level[v] - 1] for v in up])
        spent = space.load(tried, budgets) - space.load(widths, budgets)
        if not per_cost:
            spent = (tried - widths).sum(axis=1)
        worth = np.where(fits, gained / np.maximum(spent, 1e-12), -np.inf)
        chosen = int(np.argmax(worth))
        level[up[chosen]] -= 1
        widths = tried[chosen]
    shares = np.array([ladder.shares[place] for ladder, place in zip(ladders, level, strict=True)])
    return _start(f"{'greedy' if per_cost else 'global'} {criterion}", space, shares, budgets)


@dataclass(frozen=True)
class _Ladder:
    """The widths that one variable can set, from dense down.

    Attributes:
        places: [g], its groups' places in a width array.
        shares: [L], rising from 0.
        widths: [L, g], falling.
        removed: [L], importance gone at each level.
    """

    places: NDArray[np.int64]
    shares: Shares
    widths: Widths
    removed: NDArray[np.float64]

    def apply(self, widths: Widths, level: int) -> Widths:
        """A copy of widths [G] with this variable's groups at ``level``."""
        changed = widths.copy()
        changed[self.places] = self.widths[level]
        return changed


def _ladders(space: Space, importance: Mapping[str, NDArray[np.float64]]) -> list[_Ladder]:
    ladders = []
    for number in range(len(space.variables)):
        places = np.flatnonzero(space.variable_of == number)
        if len(places) == 1:  # every width, at the share that means exactly it
            place = int(places[0])
            dense, low, step = (int(a[place]) for a in (space.dense, space.lowest, space.step))
            widths = np.array([dense, *range((dense - 1) // step * step, low - 1, -step)])[:, None]
            shares = (dense - widths[:, 0]) / (dense * space.max_ratio[place])
        else:
            grid = np.zeros((_LEVELS, len(space.variables)))
            grid[:, number] = np.linspace(0.0, 1.0, _LEVELS)
            widths, first = np.unique(-space.widths(grid)[:, places], axis=0, return_index=True)
            widths, shares = -widths, grid[first, number]
        removed = np.zeros(len(shares))
        for column, name in enumerate(np.array(space.names)[places]):
            group = space.graph.groups[name]
            scores = np.sort(per_unit(importance[group.name], group))
            gone = (group.width - widths[:, column]) // group.unit
            removed += np.concatenate([[0.0], np.cumsum(scores)])[gone]
        ladders.append(_Ladder(places, np.minimum(shares, 1.0), widths, removed))
    return ladders


def _excess(space: Space, widths: Widths, budgets: Sequence[Budget]) -> NDArray[np.float64]:
    """By how much widths [..., G] overrun the budgets, in shares of each, summed."""
    overrun = np.zeros(np.shape(widths)[:-1])
    for budget in budgets:
        if budget.metric != "latency_ms":
            overrun += np.maximum(space.cost(budget.metric, widths) / budget.limit - 1, 0)
    return overrun


def _start(name: str, space: Space, shares: Shares, budgets: Sequence[Budget]) -> WarmStart:
    """Fits the shares, and names those that mean the fitted widths exactly where there are such."""
    widths = space.fit(shares, budgets)
    exact = space.shares(widths)
    return WarmStart(name, exact if np.array_equal(space.widths(exact), widths) else shares, widths)
