"""Warm starts: the policies that one-shot methods end with, so that the search begins there."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.cost.budget import Budget
from autoprune.importance.reduce import LOSS_UNITS, comparable
from autoprune.space.knapsack import solve
from autoprune.space.space import Fractions, Space, Widths
from autoprune.space.width_options import WidthOptions, fractions_at, make_width_options, removed_by


@dataclass(frozen=True)
class WarmStart:
    """A policy to try first.

    Attributes:
        name: how it was made: ``uniform``, ``greedy taylor``, ``global taylor``, …
        fractions: [V], what to enqueue; `Space.project_to_budget` gives exactly ``widths`` for it.
        widths: [G].
    """

    name: str
    fractions: Fractions
    widths: Widths


def warm_starts(
    space: Space, importances: Mapping[str, Mapping[str, NDArray[np.float64]]], budgets: Sequence[Budget]
) -> list[WarmStart]:
    """The policies that one-shot methods end with, those of most worth first; no widths twice.

    The uniform one stands first as the measure of all others. Then, by the first criterion: the knapsack, the
    ranking per channel, and the ranking per cost. Then what others publish: the ranking by `taylor` (global
    Taylor pruning), that by `fisher` per cost (Group Fisher), and the ranking by any other criterion.

    Only scores in units of the loss are weighed against cost. Others have no scale across groups, and the
    order by cost would empty the dearest groups first.

    Args:
        space: the search space.
        importances: {criterion: {group: [width]}}; the first is the one that ranks the space's channels.
        budgets: upper bounds, all to be met.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    found = [uniform(space, budgets)]
    for place, (criterion, scores) in enumerate(importances.items()):
        if place == 0 and criterion in LOSS_UNITS:
            found.append(knapsack(space, scores, budgets, criterion))
        if place == 0 or criterion != "fisher":
            found.append(greedy(space, scores, budgets, criterion, per_cost=False))
        if criterion == "fisher" or (place == 0 and criterion in LOSS_UNITS):
            found.append(greedy(space, scores, budgets, criterion))
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
    fractions = np.minimum(ratios / largest, 1.0)
    fits = space.budget_usage(space.widths(fractions), budgets) <= 1
    return _start("uniform", space, fractions[int(np.argmax(fits))], budgets)


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
    fraction of the budgets that are not met yet. Then the steps with the most importance per cost are taken
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
    options = make_width_options(space, comparable(importance, criterion))
    levels = greedy_levels(space, options, budgets, per_cost)
    return _start(
        f"{'greedy' if per_cost else 'global'} {criterion}", space, fractions_at(options, levels), budgets
    )


def greedy_levels(
    space: Space, options: Sequence[WidthOptions], budgets: Sequence[Budget], per_cost: bool = True
) -> NDArray[np.int64]:
    """The levels [V] that `greedy` ends at.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    space.check(budgets)
    level = np.zeros(len(options), dtype=np.int64)
    widths = space.dense.copy()
    lost = [np.diff(option.removed) for option in options]
    tried = _neighbours(options, level, widths, 1)
    load, excess = space.budget_usage(widths, budgets), _excess(space, widths, budgets)
    while load > 1:
        left = np.array([lost[v][k] if k < len(lost[v]) else np.inf for v, k in enumerate(level)])
        excesses = _excess(space, tried, budgets)
        saved = excess - excesses
        if not per_cost:
            saved = np.where(saved > 0, (widths - tried).sum(axis=1), 0)
        worth = np.divide(left, saved, out=np.full(len(options), np.inf), where=saved > 0)
        chosen = int(np.argmin(worth))
        _move(options, level, widths, tried, chosen, 1)
        load, excess = space.budget_usage(widths, budgets), excesses[chosen]
    tried = _neighbours(options, level, widths, -1)
    while True:
        loads = space.budget_usage(tried, budgets)
        fits = (loads <= 1) & (level > 0)
        if not fits.any():
            return level
        gained = np.array([lost[v][k - 1] if k > 0 else 0.0 for v, k in enumerate(level)])
        spent = loads - load
        if not per_cost:
            spent = (tried - widths).sum(axis=1)
        chosen = int(np.argmax(np.where(fits, gained / np.maximum(spent, 1e-12), -np.inf)))
        _move(options, level, widths, tried, chosen, -1)
        load = loads[chosen]


def _neighbours(
    options: Sequence[WidthOptions], level: NDArray[np.int64], widths: Widths, step: int
) -> NDArray[np.int64]:
    """[V, G]: widths [G] with one variable each ``step`` levels further, or as it is at its ladder's end."""
    tried = np.tile(widths, (len(options), 1))
    for v, option in enumerate(options):
        if 0 <= level[v] + step < len(option.fractions):
            tried[v, option.places] = option.widths[level[v] + step]
    return tried


def _move(
    options: Sequence[WidthOptions],
    level: NDArray[np.int64],
    widths: Widths,
    tried: NDArray[np.int64],
    v: int,
    step: int,
) -> None:
    """Moves variable v ``step`` levels further, in place: in level [V], widths [G], neighbours [V, G]."""
    option = options[v]
    level[v] += step
    widths[option.places] = option.widths[level[v]]
    tried[:, option.places] = widths[option.places]
    if 0 <= level[v] + step < len(option.fractions):
        tried[v, option.places] = option.widths[level[v] + step]


def knapsack(
    space: Space,
    importance: Mapping[str, NDArray[np.float64]],
    budgets: Sequence[Budget],
    criterion: str = "taylor",
) -> WarmStart:
    """The least importance removed within the budgets; see `autoprune.space.knapsack`.

    Removes no more than `greedy`, whose policy it begins at.

    Args:
        space: the search space.
        importance: {group: [width]}, none negative.
        budgets: upper bounds, all to be met.
        criterion: what scored the channels; names the start.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    scores = comparable(importance, criterion)
    options = make_width_options(space, scores)
    begin = greedy_levels(space, options, budgets)
    ends = [solve(space, options, budgets, begin), begin]  # fitted, the second can be the better one
    starts = [_start(f"knapsack {criterion}", space, fractions_at(options, end), budgets) for end in ends]
    return min(starts, key=lambda start: removed_by(space, scores, start.widths))


def _excess(space: Space, widths: Widths, budgets: Sequence[Budget]) -> NDArray[np.float64]:
    """By how much widths [..., G] overrun the budgets, in fractions of each, summed."""
    overrun = np.zeros(np.shape(widths)[:-1])
    for budget in budgets:
        if space.models(budget.metric):
            overrun += np.maximum(space.cost(budget.metric, widths) / budget.limit - 1, 0)
    return overrun


def _start(name: str, space: Space, fractions: Fractions, budgets: Sequence[Budget]) -> WarmStart:
    """Fits the shares, and names those that mean the fitted widths exactly where there are such."""
    widths = space.project_to_budget(fractions, budgets)
    exact = space.fractions(widths)
    return WarmStart(name, exact if np.array_equal(space.widths(exact), widths) else fractions, widths)
