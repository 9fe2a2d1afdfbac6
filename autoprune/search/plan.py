"""What a search may propose: fractions of the space's variables, projected onto one of the run's budgets."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from hashlib import sha256
from typing import Any

import numpy as np

from autoprune.config import Config
from autoprune.cost.budget import UNITS, Budget, figures, parse_budget
from autoprune.errors import BudgetError
from autoprune.graph import ChannelGraph
from autoprune.importance import CRITERIA, Importance, comparable
from autoprune.space.file import SpaceFile
from autoprune.space.one_shot import greedy_levels, warm_starts
from autoprune.space.space import NEAR, Fractions, Space
from autoprune.space.warm_start import WarmStart
from autoprune.space.width_options import WidthOptions, fractions_at, make_width_options

# Where no budget is given, warm starts are made at these fractions of the dense GFLOPs.
FREE_LEVELS = (0.75, 0.5, 0.33)

# Warm starts of a run, and of a budget where there are many; they must not depend on the number of trials, or
# an extended run would differ from one that had all its trials from the start.
MOST_WARM_STARTS, LEAST_WARM_STARTS = 8, 3

_SAMPLE = 32  # vectors that are projected onto each budget to see how close to it trials come

Bounds = tuple[Budget, ...]


def warm_criteria(criterion: str) -> tuple[str, ...]:
    """The criteria to make warm starts by, the run's own first; gradient ones only beside a gradient one."""
    gradients = CRITERIA[criterion].loss_units
    others = [
        name for name, other in CRITERIA.items() if other.one_shot and (gradients or not other.needs_data)
    ]
    others.sort(key=lambda name: not CRITERIA[name].needs_data)
    return (criterion, *(other for other in others if other != criterion))


class SpacePlan:
    """A search space with the run's budgets; a `trials.Plan`.

    Args:
        space: resolved, with importance.
        bounds: for each budget of the run, all the bounds that a candidate must meet.
        criteria: scores by criterion, for the warm starts, the run's own first; empty for no warm starts.
        identity: what the study is about.
        criterion: what scored the channels of ``space``.

    Raises:
        BudgetError: no policy of the space meets a budget.
    """

    def __init__(
        self,
        space: Space,
        bounds: Sequence[Bounds],
        criteria: Mapping[str, Importance],
        identity: Mapping[str, str],
        criterion: str = "joint",
    ) -> None:
        for bound in bounds:
            space.check(bound)
        self.space, self.bounds, self.identity = space, tuple(bounds), dict(identity)
        self._criterion = criterion
        self.variables = [variable.name for variable in space.variables]
        self.budgets = [
            next((budget.limit for budget in bound if budget.metric == "gflops"), None) for bound in bounds
        ]
        self.warm_starts: list[WarmStart] = self._solve(criteria) if criteria else []

    def widths(self, fractions: np.ndarray[Any, Any], budget: int) -> dict[str, int]:
        """The widths of fractions [V], projected onto a budget."""
        return self.space.as_dict(self.space.project_to_budget(fractions, self.bounds[budget]))

    def removed(self, widths: Sequence[Mapping[str, int]]) -> Fractions:
        """Importance that each of N widths removes from each variable, [N, V]."""
        ordered = np.array([self.space.as_array(each) for each in widths], dtype=np.int64)
        ordered = ordered.reshape(len(widths), len(self.space.names))  # also where there are none
        return np.stack([option.removed_by(ordered) for option in self._options], axis=-1)

    def cheapest(
        self,
        weights: Fractions,
        budget: int,
        level: float,
        near: Mapping[str, int] | None = None,
        reach: int = 1,
    ) -> Fractions:
        """Fractions [V] of the policy on a budget that removes the least importance, weighted by [V].

        With ``near``, among those of which each variable is at most ``reach`` levels from these widths; they
        must meet the budget.

        Solved greedily, which ends within a percent of the knapsack's solution in a tenth of the time. Where
        GFLOPs have no budget, ``level`` chooses one: 0 the least reachable GFLOPs, 1 the dense detector's.
        """
        bound = self.bounds[budget]
        if not self._is_modeled(bound):
            least, dense = self._gflops_range()
            bound = (Budget("gflops", least + level * (dense - least)),)
        options = [
            replace(option, removed=option.removed * weight)
            for option, weight in zip(self._options, weights, strict=True)
        ]
        if near is not None:
            options = [option.near(self.space.as_array(near), reach) for option in options]
        return fractions_at(options, greedy_levels(self.space, options, bound))

    def coarseness(self) -> str | None:
        """One line where the widths are too coarse for trials to come within 2% of a budget, by a sample."""
        random = np.random.default_rng(0).random((_SAMPLE, len(self.space.variables)))
        worst, worst_budget = 1.0, None
        for bound in self.bounds:
            modeled = [budget for budget in bound if budget.metric != "latency_ms"]
            for fractions in random if modeled else ():
                widths = self.space.project_to_budget(fractions, modeled)
                usage = float(self.space.budget_usage(widths, modeled))
                if usage < worst:
                    worst, worst_budget = usage, modeled[0]
        if worst_budget is None or worst >= NEAR:
            return None
        return (
            f"trials can end up to {1 - worst:.1%} below {figures(worst_budget.limit)} "
            f"{UNITS[worst_budget.metric]}: widths are multiples of {int(self.space.step.max())}, too coarse "
            "for less; lower round_to in the space"
        )

    def only_warm_starts(self, trials: int) -> str | None:
        """One line where a search of so many trials ends before its sampler proposes one."""
        if trials > (count := len(self.warm_starts)):
            return None
        origins = ", ".join(dict.fromkeys(start.origin for start in self.warm_starts[:trials]))
        return (
            f"nothing is searched: all {trials} trials are warm starts ({origins}); the sampler proposes "
            f"only after {count}: give --trials (YAML: trials) more than {count}"
        )

    @cached_property
    def _options(self) -> list[WidthOptions]:
        """For each variable the widths it can be set to, with the importance that each removes."""
        if self.space.importance is None:
            raise ValueError("the space has no importance; give it to resolve()")
        return make_width_options(self.space, comparable(self.space.importance, self._criterion))

    def _solve(self, criteria: Mapping[str, Importance]) -> list[WarmStart]:
        """The best warm start of each budget, then the second best of each, and so on."""
        starts = [
            (kind, start)
            for index, bound in enumerate(self.bounds)
            for level in self._levels(bound)
            for kind, start in enumerate(warm_starts(self.space, criteria, level, index))
        ]
        starts.sort(key=lambda pair: pair[0])
        most = max(MOST_WARM_STARTS, LEAST_WARM_STARTS * len(self.bounds))
        return [start for _, start in starts[:most]]

    def _levels(self, bound: Bounds) -> list[Bounds]:
        """The bounds to make warm starts for: the budget's own, or a few where costs have none."""
        if self._is_modeled(bound):
            return [bound]
        least, dense = self._gflops_range()
        return [(Budget("gflops", level * dense),) for level in FREE_LEVELS if level * dense >= least]

    def _is_modeled(self, bound: Bounds) -> bool:
        """Whether any of the bounds is on a cost that is known without measuring."""
        return any(self.space.models(budget.metric) for budget in bound)

    def _gflops_range(self) -> tuple[float, float]:
        """GFLOPs of the smallest policy and of the dense detector."""
        least, dense = (
            float(self.space.cost("gflops", widths)) for widths in (self.space.lowest, self.space.dense)
        )
        return least, dense


def read_bounds(config: Config, graph: ChannelGraph) -> list[Bounds]:
    """The budgets of a run, largest first; one without bounds where none is given.

    Raises:
        BudgetError: a budget is no number, or does not lie below the dense detector.
    """
    gflops = [parse_budget(text, "gflops", graph.gflops()) for text in config.budget_gflops]
    gflops.sort(key=lambda budget: -budget.limit)
    if len({budget.limit for budget in gflops}) < len(gflops):
        raise BudgetError(
            f"budget_gflops: {', '.join(config.budget_gflops)} holds a budget twice; give each once"
        )
    others: Bounds = ()
    if config.budget_mparams is not None:
        others = (parse_budget(config.budget_mparams, "mparams", graph.mparams()),)
    return [(budget, *others) for budget in gflops] or [others]


def identify(
    weights_sha256: str, file: SpaceFile, bounds: Sequence[Bounds], data: Mapping[str, str]
) -> dict[str, str]:
    """What a study is about; one of other weights, space, budgets or ``data`` must not be continued."""
    space = json.dumps(file.model_dump(mode="json"), sort_keys=True)
    return {
        "weights": weights_sha256[:16],
        "space": sha256(space.encode()).hexdigest()[:16],
        "budgets": json.dumps([[(budget.metric, budget.limit) for budget in bound] for bound in bounds]),
        **data,
    }
