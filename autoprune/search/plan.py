"""What a search may propose: fractions of the space's variables, put on one of the run's budgets."""

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
from autoprune.importance import Importance
from autoprune.importance.reduce import LOSS_UNITS, comparable
from autoprune.space import one_shot as seeds
from autoprune.space.file import SpaceFile
from autoprune.space.space import NEAR, Fractions, Space
from autoprune.space.width_options import WidthOptions, fractions_at, make_width_options
from autoprune.study.trials import WarmStart

# Where no budget is given, warm starts are made at these fractions of the dense GFLOPs.
FREE_LEVELS = (0.75, 0.5, 0.33)

# Warm starts of a run, and of a budget where there are many; a number of trials must not change which they
# are, or a run that is extended would not be the one that was asked for at once.
MOST_WARM_STARTS, LEAST_WARM_STARTS = 8, 3

_SAMPLE = 32  # vectors that are fitted to each budget to learn how near trials come

Bounds = tuple[Budget, ...]


def warm_criteria(criterion: str) -> tuple[str, ...]:
    """The criteria to make warm starts by, the run's own first; gradient ones only beside a gradient one."""
    others = ("taylor", "fisher", "l2") if criterion in LOSS_UNITS else ("l2",)
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
        """Refuses budgets that can't be met and solves for the warm starts."""
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
        """The widths of fractions [V], put on a budget."""
        return self.space.as_dict(self.space.project_to_budget(fractions, self.bounds[budget]))

    def keep(self, widths: Mapping[str, int]) -> dict[str, tuple[int, ...]]:
        """The kept channels of each pruned group."""
        return self.space.keep(np.array([widths[name] for name in self.space.names]))

    @cached_property
    def _options(self) -> list[WidthOptions]:
        """What each variable can be set to, and the importance gone there."""
        if self.space.importance is None:
            raise ValueError("the space has no importance; give it to resolve()")
        return make_width_options(self.space, comparable(self.space.importance, self._criterion))

    def removed(self, widths: Sequence[Mapping[str, int]]) -> Fractions:
        """Importance that each of N widths removes from each variable, [N, V]."""
        ordered = np.array([[each[name] for name in self.space.names] for each in widths], dtype=np.int64)
        ordered = ordered.reshape(len(widths), len(self.space.names))
        return np.stack([option.gone(ordered) for option in self._options], axis=-1)

    def cheapest(self, weights: Fractions, budget: int, level: float) -> Fractions:
        """Shares [V] of the policy on a budget that removes the least importance, weighted by [V].

        Found greedily, which ends within a per cent of the knapsack's solution, in a tenth of the time. Where
        GFLOPs are free, ``level`` says which to meet: 0 the least reachable ones, 1 the dense detector's.
        """
        bound = self.bounds[budget]
        if not any(self.space.models(part.metric) for part in bound):
            least, dense = (
                float(self.space.cost("gflops", w)) for w in (self.space.lowest, self.space.dense)
            )
            bound = (Budget("gflops", least + level * (dense - least)),)
        options = [
            replace(option, removed=option.removed * weight)
            for option, weight in zip(self._options, weights, strict=True)
        ]
        return fractions_at(options, seeds.greedy_levels(self.space, options, bound))

    def coarseness(self) -> str | None:
        """One line where steps are too coarse for trials to come within 2% of a budget, by a sample."""
        random = np.random.default_rng(0).random((_SAMPLE, len(self.space.variables)))
        worst, of = 1.0, None
        for bound in self.bounds:
            modelled = [budget for budget in bound if budget.metric != "latency_ms"]
            for fractions in random if modelled else ():
                used = float(
                    self.space.budget_usage(self.space.project_to_budget(fractions, modelled), modelled)
                )
                if used < worst:
                    worst, of = used, modelled[0]
        if of is None or worst >= NEAR:
            return None
        return (
            f"trials can end up to {1 - worst:.1%} below {figures(of.limit)} {UNITS[of.metric]}: widths are "
            f"multiples of {int(self.space.step.max())}, too coarse for less; lower round_to in the space"
        )

    def _solve(self, criteria: Mapping[str, Importance]) -> list[WarmStart]:
        """The first of all budgets, then the second of all, and so on; a budget's own, none twice."""
        starts = [
            (kind, index, start)
            for index, bound in enumerate(self.bounds)
            for level in self._levels(bound)
            for kind, start in enumerate(seeds.warm_starts(self.space, criteria, level))
        ]
        starts.sort(key=lambda found: found[0])
        most = max(MOST_WARM_STARTS, LEAST_WARM_STARTS * len(self.bounds))
        return [
            WarmStart(
                start.name,
                index,
                tuple(float(fraction) for fraction in start.fractions),
                self.space.as_dict(start.widths),
            )
            for _, index, start in starts[:most]
        ]

    def _levels(self, bound: Bounds) -> list[Bounds]:
        """The bounds to make warm starts for: the budget's own, or a few where costs are free."""
        if any(self.space.models(budget.metric) for budget in bound):
            return [bound]
        dense, least = (float(self.space.cost("gflops", w)) for w in (self.space.dense, self.space.lowest))
        return [(Budget("gflops", level * dense),) for level in FREE_LEVELS if level * dense >= least]


def read_bounds(config: Config, graph: ChannelGraph) -> list[Bounds]:
    """The budgets of a run, dearest first; one without bounds where nothing is asked for.

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


def identify(weights_sha256: str, file: SpaceFile, bounds: Sequence[Bounds]) -> dict[str, str]:
    """What a study is about; one of other weights, space or budgets must not be continued."""
    space = json.dumps(file.model_dump(mode="json"), sort_keys=True)
    return {
        "weights": weights_sha256[:16],
        "space": sha256(space.encode()).hexdigest()[:16],
        "budgets": json.dumps([[(budget.metric, budget.limit) for budget in bound] for bound in bounds]),
    }
