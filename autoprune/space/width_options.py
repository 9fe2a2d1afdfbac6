"""The widths that each variable of a space can set, from dense down, with the importance removed at each."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autoprune.importance.reduce import per_unit
from autoprune.space.space import Fractions, Scores, Space, Widths

_LEVELS = 129  # fractions tried for a variable of several groups


@dataclass(frozen=True)
class WidthOptions:
    """L levels that one variable can set, from the widest down: all from dense, or some around a policy.

    Attributes:
        places: [g], indices of its groups in a width array.
        fractions: [L], the variable's value at each level, rising.
        widths: [L, g], falling.
        removed: [L], importance removed at each level.
    """

    places: NDArray[np.int64]
    fractions: Fractions
    widths: Widths
    removed: NDArray[np.float64]

    def near(self, widths: Widths, reach: int) -> "WidthOptions":
        """The levels at most ``reach`` from the one nearest to widths [G]."""
        total = self.widths.sum(axis=1)
        level = int(np.argmin(np.abs(total - int(widths[self.places].sum()))))
        part = slice(max(level - reach, 0), level + reach + 1)
        return WidthOptions(self.places, self.fractions[part], self.widths[part], self.removed[part])

    def removed_by(self, widths: Widths) -> NDArray[np.float64]:
        """Importance [...] removed from this variable's groups at widths [..., G], which need not be a level.

        Groups that share a variable can end a step apart; between levels, it is interpolated over their total
        width.
        """
        total = self.widths.sum(axis=1)
        return np.asarray(np.interp(-widths[..., self.places].sum(axis=-1), -total, self.removed))


def make_width_options(space: Space, importance: Scores) -> list[WidthOptions]:
    """The levels of each of the V variables.

    Args:
        space: the search space.
        importance: {group: [width]}, scores that add up across groups, none negative.
    """
    options = []
    for number in range(len(space.variables)):
        places = np.flatnonzero(space.variable_of == number)
        if len(places) == 1:  # every width, at the fraction that gives exactly it
            place = int(places[0])
            dense, low, step = (int(a[place]) for a in (space.dense, space.least, space.step))
            empty = [0] if space.max_ratio[place] >= 1 else []
            widths = np.array([dense, *range((dense - 1) // step * step, low - 1, -step), *empty])[:, None]
            fractions = (dense - widths[:, 0]) / (dense * space.max_ratio[place])
        else:
            grid = np.zeros((_LEVELS, len(space.variables)))
            grid[:, number] = np.linspace(0.0, 1.0, _LEVELS)
            widths, first = np.unique(-space.widths(grid)[:, places], axis=0, return_index=True)
            widths, fractions = -widths, grid[first, number]
        removed = np.zeros(len(fractions))
        for column, name in enumerate(np.array(space.names)[places]):
            group = space.graph.groups[name]
            scores = np.sort(per_unit(importance[group.name], group))
            removed_units = (group.width - widths[:, column]) // group.unit
            removed += np.concatenate([[0.0], np.cumsum(scores)])[removed_units]
        options.append(WidthOptions(places, np.minimum(fractions, 1.0), widths, removed))
    return options


def fractions_at(options: Sequence[WidthOptions], levels: NDArray[np.int64]) -> Fractions:
    """Fractions [V] of levels [V]."""
    return np.array([option.fractions[level] for option, level in zip(options, levels, strict=True)])


def widths_at(space: Space, options: Sequence[WidthOptions], levels: NDArray[np.int64]) -> Widths:
    """Widths [..., G] of levels [..., V]."""
    widths = np.broadcast_to(space.dense, (*levels.shape[:-1], len(space.dense))).copy()
    for v, option in enumerate(options):
        widths[..., option.places] = option.widths[levels[..., v]]
    return widths


def removed_at(options: Sequence[WidthOptions], levels: NDArray[np.int64]) -> float:
    """The surrogate of the lost mAP: importance removed at levels [V]."""
    return float(sum(option.removed[level] for option, level in zip(options, levels, strict=True)))


def removed_by(space: Space, importance: Scores, widths: Widths) -> float:
    """The surrogate of any widths [G]: the sum of the scores of the units that are removed."""
    total = 0.0
    for name, width in zip(space.names, widths, strict=True):
        group = space.graph.groups[name]
        if width < group.width:
            total += float(
                np.sort(per_unit(importance[name], group))[: (group.width - width) // group.unit].sum()
            )
    return total
