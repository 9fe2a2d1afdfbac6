"""Warm starts: the policies that one-shot methods end with, so that the search starts there."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.cost.budget import Budget
from autoprune.importance import CRITERIA, CURVES, comparable, in_loss_units
from autoprune.space.knapsack import solve
from autoprune.space.space import Fractions, Scores, Space, Widths
from autoprune.space.warm_start import WarmStart
from autoprune.space.width_options import (
    WidthOptions,
    fractions_at,
    make_width_options,
    removed_by,
    widths_at,
)


def warm_starts(
    space: Space, importances: Mapping[str, Scores], budgets: Sequence[Budget], index: int = 0
) -> list[WarmStart]:
    """The policies that one-shot methods end with, the most promising first; no widths twice.

    The uniform one comes first, as the baseline of all others. Then the ranking per cost by curves and by the
    first criterion, then their knapsacks, which often end near it, and the criterion's ranking per channel.
    Then what others publish: the ranking by `taylor` (global Taylor pruning), that by `fisher` per cost
    (Group Fisher), and the ranking by any other criterion.

    Only scores in units of the loss are weighed against cost. Others have no scale across groups, and the
    order by cost would empty the most expensive groups first.

    Args:
        space: the search space.
        importances: {criterion: {group: [width]}}: `CURVES` where there are any, then the criterion that
            ranks the space's channels, then others.
        budgets: upper bounds, all to be met.
        index: of these bounds among the budgets of the run; `WarmStart.budget`.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    starts = [uniform(space, budgets, index)]
    own = next(criterion for criterion in importances if criterion != CURVES)
    solved = [name for name in importances if name in (own, CURVES) and in_loss_units(name)]
    starts += [greedy(space, importances[name], budgets, name, index=index) for name in solved]
    starts += [knapsack(space, importances[name], budgets, name, index) for name in solved]
    for criterion, scores in importances.items():
        published = "global" if criterion == own else None
        if criterion not in (own, CURVES):
            published = CRITERIA[criterion].one_shot
        if published is not None:
            per_cost = published == "greedy"
            starts.append(greedy(space, scores, budgets, criterion, per_cost=per_cost, index=index))
    return [
        start
        for place, start in enumerate(starts)
        if not any(start.widths == earlier.widths for earlier in starts[:place])
    ]


def widths_of(space: Space, start: WarmStart) -> Widths:
    """Widths [G] of a warm start that was made in this space.

    Raises:
        ValueError: the start has none.
    """
    if start.widths is None:
        raise ValueError(f"the warm start {start.origin!r} has no widths")
    return space.as_array(start.widths)


def uniform(space: Space, budgets: Sequence[Budget], index: int = 0) -> WarmStart:
    """The same pruning ratio for every group, up to each one's largest ratio.

    Args:
        space: the search space.
        budgets: upper bounds, all to be met.
        index: of these bounds among the budgets of the run.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    space.check(budgets)
    largest = np.array([variable.max_ratio for variable in space.variables])
    ratios = np.linspace(0.0, 1.0, 1001)[:, None]
    fractions = np.minimum(ratios / largest, 1.0)
    fits = space.budget_usage(space.widths(fractions), budgets) <= 1
    return _warm_start("uniform", space, fractions[int(np.argmax(fits))], budgets, index)


def greedy(
    space: Space,
    importance: Scores,
    budgets: Sequence[Budget],
    criterion: str,
    per_cost: bool = True,
    index: int = 0,
) -> WarmStart:
    """Repeats the step with the least importance per cost until the budgets are met.

    The order of Group Fisher pruning (Liu et al., ICML 2021), on the cost model: a step of one variable
    removes its groups' next least important units; its cost is what it saves at the current widths, as a
    fraction of the budgets that are not met yet. Then the steps with the most importance per cost are undone
    while they fit. Scores that are not in units of the loss are first divided by their group's mean.

    With ``per_cost`` off, importance is compared per channel, whatever the channel costs: the global ranking
    of DepGraph (Fang et al., CVPR 2023). It prunes single expensive groups less far. The sum of scores
    underrates these, because it ignores what the channels of a group do together.

    Args:
        space: the search space.
        importance: {group: [width]}, none negative.
        budgets: upper bounds, all to be met.
        criterion: what scored the channels; it is in the origin, and decides whether scores are comparable
            across groups.
        per_cost: divide importance by the cost, or by the number of channels.
        index: of these bounds among the budgets of the run.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    options = make_width_options(space, comparable(importance, criterion))
    levels = greedy_levels(space, options, budgets, per_cost)
    origin = f"{'greedy' if per_cost else 'global'} {criterion}"
    return _warm_start(origin, space, fractions_at(options, levels), budgets, index)


def knapsack(
    space: Space,
    importance: Scores,
    budgets: Sequence[Budget],
    criterion: str,
    index: int = 0,
) -> WarmStart:
    """The least importance removed within the budgets; see `autoprune.space.knapsack`.

    It removes no more than `greedy`, whose policy it starts from.

    Args:
        space: the search space.
        importance: {group: [width]}, none negative.
        budgets: upper bounds, all to be met.
        criterion: what scored the channels; it is in the origin.
        index: of these bounds among the budgets of the run.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    scores = comparable(importance, criterion)
    options = make_width_options(space, scores)
    begin = greedy_levels(space, options, budgets)
    ends = (solve(space, options, budgets, begin), begin)  # once projected, the second can be the better one
    fractions = min(
        (fractions_at(options, end) for end in ends),
        key=lambda each: removed_by(space, scores, space.project_to_budget(each, budgets)),
    )
    return _warm_start(f"knapsack {criterion}", space, fractions, budgets, index)


def greedy_levels(
    space: Space, options: Sequence[WidthOptions], budgets: Sequence[Budget], per_cost: bool = True
) -> NDArray[np.int64]:
    """The levels [V] that `greedy` ends at.

    Args:
        space: the search space.
        options: V of them; their last levels together meet the budgets.
        budgets: upper bounds, all to be met.
        per_cost: see `greedy`.

    Raises:
        BudgetError: no policy of the space meets the budgets.
    """
    space.check(budgets)
    level = np.zeros(len(options), dtype=np.int64)
    widths = widths_at(space, options, level)
    lost = [np.diff(option.removed) for option in options]
    tried = _neighbors(options, level, widths, 1)
    load, excess = space.budget_usage(widths, budgets), _excess(space, widths, budgets)
    while load > 1:
        next_lost = np.array([lost[v][k] if k < len(lost[v]) else np.inf for v, k in enumerate(level)])
        excesses = _excess(space, tried, budgets)
        saved = excess - excesses
        if not per_cost:
            saved = np.where(saved > 0, (widths - tried).sum(axis=1), 0)
        worth = np.divide(next_lost, saved, out=np.full(len(options), np.inf), where=saved > 0)
        chosen = int(np.argmin(worth))
        _move(options, level, widths, tried, chosen, 1)
        load, excess = space.budget_usage(widths, budgets), excesses[chosen]
    tried = _neighbors(options, level, widths, -1)
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


def _neighbors(
    options: Sequence[WidthOptions], level: NDArray[np.int64], widths: Widths, step: int
) -> NDArray[np.int64]:
    """[V, G]: widths [G] with one variable each ``step`` levels further, or unchanged at its last level."""
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
    """Moves variable v ``step`` levels further, in place: in level [V], widths [G], neighbors [V, G]."""
    option = options[v]
    level[v] += step
    widths[option.places] = option.widths[level[v]]
    tried[:, option.places] = widths[option.places]
    if 0 <= level[v] + step < len(option.fractions):
        tried[v, option.places] = option.widths[level[v] + step]


def _excess(space: Space, widths: Widths, budgets: Sequence[Budget]) -> NDArray[np.float64]:
    """By how much widths [..., G] exceed the budgets, as a sum of fractions of each."""
    overrun = np.zeros(np.shape(widths)[:-1])
    for budget in budgets:
        if space.models(budget.metric):
            overrun += np.maximum(space.cost(budget.metric, widths) / budget.limit - 1, 0)
    return overrun


def _warm_start(
    origin: str, space: Space, fractions: Fractions, budgets: Sequence[Budget], index: int
) -> WarmStart:
    """Projects fractions [V] onto the budgets; returns those of the projected widths where they are exact."""
    widths = space.project_to_budget(fractions, budgets)
    exact = space.fractions(widths)
    if np.array_equal(space.widths(exact), widths):
        fractions = exact
    return WarmStart(origin, index, tuple(fractions.tolist()), space.as_dict(widths))
