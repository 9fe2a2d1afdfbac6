"""A search space at one of the input sizes that a search may choose from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.cost.budget import Budget
from autoprune.importance import Importance
from autoprune.space.input_size import INPUT_SIZE
from autoprune.space.one_shot import greedy_levels, warm_starts
from autoprune.space.space import Fractions, Space, Widths
from autoprune.space.warm_start import WarmStart
from autoprune.space.width_options import WidthOptions, fractions_at, removed_at

Bounds = tuple[Budget, ...]


@dataclass(frozen=True)
class SizedSpace:
    """The same groups and variables at each size; the costs are those of this one.

    Attributes:
        space: resolved on the graph that was traced at this size.
        bounds: for each budget of the run, all the bounds that a candidate must meet.
        pixels: of the shorter side; ``None`` where the search has one input size.
        removed: importance that the size itself removes, 0 at the detector's own.
    """

    space: Space
    bounds: tuple[Bounds, ...]
    pixels: int | None = None
    removed: float = 0.0

    def is_modeled(self, bound: Bounds) -> bool:
        """Whether any of the bounds is on a cost that is known without measuring."""
        return any(self.space.models(budget.metric) for budget in bound)

    def reaches(self, bound: Bounds) -> bool:
        """Whether the smallest widths of the space meet the bounds."""
        return float(self.space.budget_usage(self.space.lowest, bound)) <= 1

    def dense_meets(self, bound: Bounds) -> bool:
        """Whether the dense widths meet the bounds already, for the size alone saves enough."""
        return self.is_modeled(bound) and not self.is_modeled(self.binding(bound))

    def binding(self, bound: Bounds) -> Bounds:
        """The bounds without those that the dense widths meet with room, which all other widths meet too."""
        space = self.space
        return tuple(
            budget
            for budget in bound
            if not space.models(budget.metric)
            or float(space.cost(budget.metric, space.dense)) >= budget.limit
        )

    def project(self, fractions: Fractions, bound: Bounds) -> Widths:
        """Fractions [V] projected onto the bounds, [G]: the dense widths where these meet them.

        Raises:
            BudgetError: no widths meet them.
        """
        if self.dense_meets(bound):
            return self.space.dense
        return self.space.project_to_budget(fractions, self.binding(bound))

    def cheapest(
        self, options: Sequence[WidthOptions], bound: Bounds, weight: float = 1.0
    ) -> tuple[float, Fractions]:
        """The least importance that a policy within the bounds removes, by greedy steps, and its fractions.

        Args:
            options: widths and removed importance of each variable.
            bound: modeled bounds that the space reaches.
            weight: of the importance that the size removes.
        """
        levels = np.zeros(len(options), dtype=np.int64)
        if not self.dense_meets(bound):
            levels = greedy_levels(self.space, options, self.binding(bound))
        return removed_at(options, levels) + weight * self.removed, fractions_at(options, levels)

    def warm_starts(
        self, criteria: Mapping[str, Importance], bound: Bounds, index: int, most: int
    ) -> list[WarmStart]:
        """What to try at this smaller size: the dense widths where they suffice, else one-shot policies.

        Args:
            criteria: scores by criterion, the run's own first.
            bound: all of them to be met.
            index: of these bounds among the budgets of the run.
            most: how many, at most.
        """
        if self.dense_meets(bound) or not self.is_modeled(bound):
            dense = (0.0,) * len(self.space.variables)
            return [WarmStart("dense", index, dense, self.space.as_dict(self.space.dense))]
        if not self.reaches(bound):
            return []
        return warm_starts(self.space, criteria, self.binding(bound), index)[:most]

    def named(self, widths: Mapping[str, int]) -> dict[str, int]:
        """Widths by group, and the input size where the search chooses it."""
        return dict(widths) if self.pixels is None else {**widths, INPUT_SIZE: self.pixels}


def refuse_out_of_reach(sizes: Sequence[SizedSpace]) -> None:
    """Refuses budgets that no policy meets at any input size.

    Args:
        sizes: the largest first.

    Raises:
        BudgetError: says the smallest cost within reach.
    """
    last = sizes[-1]
    for index, bound in enumerate(last.bounds):
        if not any(size.reaches(size.bounds[index]) for size in sizes[:-1]):
            last.space.check(last.binding(bound) if len(sizes) > 1 else bound)
