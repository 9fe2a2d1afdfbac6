"""One width for each variable, chosen jointly: the least importance removed within the exact budgets.

HALP (Shen et al., NeurIPS 2022) and MDP (Sun et al., CVPR 2025) choose widths by a knapsack over a table of
costs. Multiply-adds are products of two widths, which no table can hold; both steps here ask the cost model
for the exact cost of every candidate instead:

1. `relax`: minimize removed importance + multiplier * cost by coordinate descent over the variables (the
   knapsack's Lagrangian, linearized at the current widths in every step); the multiplier is found by
   bisection (Everett, Operations Research 11(3), 1963).
2. `exchange`: widen one variable and narrow another as long as that keeps more importance within the budgets,
   which uses what a single multiplier for all variables leaves of them.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from autoprune.cost.budget import Budget
from autoprune.space.space import Space
from autoprune.space.width_options import WidthOptions, removed_at, widths_at

Levels = NDArray[np.int64]

_BISECTIONS = 25
_SWEEPS = 50
_FURTHEST = 3  # levels that a variable moves in one exchange, at most
_EXCHANGES = 500
_CHUNK = 2048  # exchanges costed at once, the most profitable first


def solve(space: Space, options: Sequence[WidthOptions], budgets: Sequence[Budget], start: Levels) -> Levels:
    """The better of the policies that exchanges reach from the relaxed one and from ``start``.

    Args:
        space: the search space.
        options: widths and removed importance of each variable.
        budgets: upper bounds.
        start: levels [V] that meet them.

    Returns:
        [V] levels that meet the budgets and remove no more than ``start``.
    """
    begins = (start, relax(space, options, budgets, start))
    ends = [exchange(space, options, budgets, begin) for begin in begins]
    return min(ends, key=lambda levels: removed_at(options, levels))


def relax(space: Space, options: Sequence[WidthOptions], budgets: Sequence[Budget], start: Levels) -> Levels:
    """The best of the Lagrangian's policies that meet the budgets; ``start`` if none does.

    Args:
        space: the search space.
        options: V of them.
        budgets: upper bounds; the multiplier weights the sum of the fractions of each that a policy uses.
        start: levels [V] that meet them.
    """
    low, high = 0.0, 4.0 * float(sum(option.removed[-1] for option in options))
    feasible, best = start, None
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        levels = _descend(space, options, budgets, middle, feasible)
        if space.budget_usage(widths_at(space, options, levels), budgets) > 1:
            low = middle
            continue
        high, feasible = middle, levels
        if best is None or removed_at(options, feasible) < removed_at(options, best):
            best = feasible
    return start if best is None else best


def exchange(
    space: Space, options: Sequence[WidthOptions], budgets: Sequence[Budget], start: Levels
) -> Levels:
    """Makes the most profitable exchange of two variables that fits the budgets, until none is profitable.

    An exchange widens one variable by 1 to 3 levels and narrows another by 0 to 3.

    Args:
        space: the search space.
        options: V of them.
        budgets: upper bounds.
        start: levels [V] that meet them.
    """
    levels = start
    for _ in range(_EXCHANGES):
        better = _best_exchange(space, options, budgets, levels)
        if better is None:
            break
        levels = better
    return levels


def _descend(
    space: Space, options: Sequence[WidthOptions], budgets: Sequence[Budget], multiplier: float, start: Levels
) -> Levels:
    """Coordinate descent on removed importance + ``multiplier`` * (sum of the budgets' used fractions)."""
    levels, widths = start.copy(), widths_at(space, options, start)
    for _ in range(_SWEEPS):
        before = levels.copy()
        for v, option in enumerate(options):
            tried = np.repeat(widths[None], len(option.fractions), axis=0)
            tried[:, option.places] = option.widths
            used = sum((space.budget_usage(tried, [budget]) for budget in budgets), np.zeros(len(tried)))
            levels[v] = int(np.argmin(option.removed + multiplier * used))
            widths = tried[levels[v]]
        if np.array_equal(levels, before):
            break
    return levels


def _best_exchange(
    space: Space, options: Sequence[WidthOptions], budgets: Sequence[Budget], levels: Levels
) -> Levels | None:
    """Levels after the exchange that saves the most importance; ``None`` where none fits."""
    moves = np.arange(-_FURTHEST, _FURTHEST + 1)
    lost = np.full((len(options), len(moves)), np.inf)  # [V, moves]: importance that a move removes
    for v, option in enumerate(options):
        ends = levels[v] + moves
        valid = (ends >= 0) & (ends < len(option.removed))
        lost[v, valid] = option.removed[ends[valid]] - option.removed[levels[v]]
    up, down = lost[:, :_FURTHEST], lost[:, _FURTHEST:]
    gain = -(up[:, :, None, None] + down[None, None, :, :])  # [V, up, V, down]
    gain[np.arange(len(options)), :, np.arange(len(options)), :] = -np.inf
    least = 1e-12 * sum(float(option.removed[-1]) for option in options)
    order = np.argsort(-gain, axis=None, kind="stable")[: int((gain > least).sum())]
    for start in range(0, len(order), _CHUNK):
        wider, by, narrower, further = np.unravel_index(order[start : start + _CHUNK], gain.shape)
        tried = np.repeat(levels[None], len(wider), axis=0)
        rows = np.arange(len(wider))
        tried[rows, wider] += moves[:_FURTHEST][by]
        tried[rows, narrower] += moves[_FURTHEST:][further]
        fits = space.budget_usage(widths_at(space, options, tried), budgets) <= 1
        if fits.any():
            return np.asarray(tried[int(np.argmax(fits))])
    return None
