"""What a search may propose: fractions of the space's variables, projected onto one of the run's budgets.

Where a search chooses among input sizes, the size is one more variable, the last one: in equal intervals of
0..1 the sizes from the detector's own down. Each size has the same space with its own costs (`SizedSpace`).
"""

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
from autoprune.search.sized_space import Bounds, SizedSpace, refuse_out_of_reach
from autoprune.space.file import SpaceFile
from autoprune.space.input_size import INPUT_SIZE, pixels_of
from autoprune.space.one_shot import warm_starts
from autoprune.space.space import NEAR, Fractions, Space
from autoprune.space.warm_start import WarmStart
from autoprune.space.width_options import WidthOptions, make_width_options

# Where no budget is given, warm starts are made at these fractions of the dense GFLOPs.
FREE_LEVELS = (0.75, 0.5, 0.33)

# Warm starts of a run, and of a budget where there are many; they must not depend on the number of trials, or
# an extended run would differ from one that had all its trials from the start.
MOST_WARM_STARTS, LEAST_WARM_STARTS = 8, 3

# Warm starts at each smaller input size: with one budget, and for each of several.
SIZE_WARM_STARTS, SIZE_WARM_STARTS_OF_SEVERAL = 2, 1

_SAMPLE = 32  # vectors that are projected onto each budget to see how close to it trials come


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
        space: resolved, with importance, at the detector's own input size.
        bounds: for each budget of the run, all the bounds that a candidate must meet.
        criteria: scores by criterion, for the warm starts, the run's own first; empty for no warm starts.
        identity: what the study is about.
        criterion: what scored the channels of ``space``.
        smaller: the smaller input sizes that trials may have, the largest first.
        pixels: of the shorter side at the detector's own size, where there are smaller ones.

    Raises:
        BudgetError: no policy of the space meets a budget, at any size.
    """

    def __init__(
        self,
        space: Space,
        bounds: Sequence[Bounds],
        criteria: Mapping[str, Importance],
        identity: Mapping[str, str],
        criterion: str = "obs",
        smaller: Sequence[SizedSpace] = (),
        pixels: int | None = None,
    ) -> None:
        self.space, self.bounds, self.identity = space, tuple(bounds), dict(identity)
        self._criterion = criterion
        self._sizes = [SizedSpace(space, self.bounds, pixels if smaller else None), *smaller]
        refuse_out_of_reach(self._sizes)
        self.variables = [variable.name for variable in space.variables]
        if smaller:
            self.variables.append(INPUT_SIZE)
        self.budgets = [
            next((budget.limit for budget in bound if budget.metric == "gflops"), None) for bound in bounds
        ]
        self.warm_starts: list[WarmStart] = self._solve(criteria) if criteria else []

    def widths(self, fractions: np.ndarray[Any, Any], budget: int) -> dict[str, int]:
        """The widths of fractions [V], projected onto a budget, and the input size where there are several.

        A size at which no widths meet the budget is replaced by the next smaller one.
        """
        size = self._sizes[self._size_at(fractions, budget)]
        projected = size.project(fractions[: len(self.space.variables)], size.bounds[budget])
        return size.named(size.space.as_dict(projected))

    def removed(self, widths: Sequence[Mapping[str, int]]) -> Fractions:
        """Importance that each of N widths removes from each variable, [N, V]."""
        ordered = np.array([self.space.as_array(each) for each in widths], dtype=np.int64)
        ordered = ordered.reshape(len(widths), len(self.space.names))  # also where there are none
        columns = [option.removed_by(ordered) for option in self._options]
        if len(self._sizes) > 1:
            by_pixels = {size.pixels: size.removed for size in self._sizes}
            columns.append(np.array([by_pixels[pixels_of(each)] for each in widths], dtype=np.float64))
        return np.stack(columns, axis=-1)

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
        options = [
            replace(option, removed=option.removed * weight)
            for option, weight in zip(self._options, weights, strict=False)  # the last one is of the size
        ]
        if near is not None:
            options = [option.near(self.space.as_array(near), reach) for option in options]
        policies = []
        for index, size in enumerate(self._sizes):
            if near is not None and size.pixels != pixels_of(near):
                continue
            bound = size.bounds[budget]
            if not size.is_modeled(bound):
                least, dense = self._gflops_range()
                bound = (Budget("gflops", least + level * (dense - least)),)
            if size.reaches(bound):
                removed, fractions = size.cheapest(options, bound, float(weights[-1]))
                policies.append((removed, index, self._with_size(fractions, index)))
        return min(policies, key=lambda entry: entry[:2])[2]

    def coarseness(self) -> str | None:
        """One line where the widths are too coarse for trials to come within 2% of a budget, by a sample."""
        random = np.random.default_rng(0).random((_SAMPLE, len(self.space.variables)))
        worst, worst_budget = 1.0, None
        for bound in filter(self._sizes[0].reaches, self.bounds):
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
        """One line where a search of so many trials ends before its sampler proposes one for each budget."""
        count, several = len(self.warm_starts), len(self.budgets)
        proposals = trials - count
        if not count or proposals >= several:
            return None
        named, enough = "", f"more than {count}"
        if several > 1:
            limits = ", ".join(figures(limit) for limit in self.budgets if limit is not None)
            named, enough = f"{several} budgets ({limits} GFLOPs)", f"{count + several} or more, one for each"
        if proposals > 0:
            return (
                f"nothing is searched for at least {several - proposals} of the {named}: all but {proposals} "
                f"of the {trials} trials are warm starts; give --trials (YAML: trials) {enough}"
            )
        origins = ", ".join(dict.fromkeys(start.origin for start in self.warm_starts[:trials]))
        return (
            f"nothing is searched{f' for any of the {named}' if named else ''}: all {trials} trials are "
            f"warm starts ({origins}); the sampler proposes only after {count}: give --trials "
            f"(YAML: trials) {enough}"
        )

    @cached_property
    def _options(self) -> list[WidthOptions]:
        """For each variable the widths it can be set to, with the importance that each removes."""
        if self.space.importance is None:
            raise ValueError("the space has no importance; give it to resolve()")
        return make_width_options(self.space, comparable(self.space.importance, self._criterion))

    def _solve(self, criteria: Mapping[str, Importance]) -> list[WarmStart]:
        """The best warm start of each budget, then the second best of each, and so on."""
        own = self._sizes[0]
        starts = [
            (kind, self._at_size(start, 0))
            for index, bound in enumerate(self.bounds)
            for level in self._levels(bound)
            if own.reaches(level)
            for kind, start in enumerate(warm_starts(self.space, criteria, level, index))
        ]
        starts.sort(key=lambda pair: pair[0])
        most = max(MOST_WARM_STARTS, LEAST_WARM_STARTS * len(self.bounds))
        starts = starts[:most]
        most = SIZE_WARM_STARTS if len(self.bounds) == 1 else SIZE_WARM_STARTS_OF_SEVERAL
        starts += [
            (kind, self._at_size(start, place))
            for place, size in enumerate(self._sizes[1:], 1)
            for index, bound in enumerate(size.bounds)
            for kind, start in enumerate(size.warm_starts(criteria, bound, index, most))
        ]
        starts.sort(key=lambda pair: pair[0])
        return [start for _, start in starts]

    def _at_size(self, start: WarmStart, place: int) -> WarmStart:
        """A warm start of one of the sizes as one of the plan."""
        size = self._sizes[place]
        return replace(
            start,
            origin=start.origin if place == 0 else f"{start.origin} at {size.pixels} px",
            fractions=tuple(self._with_size(np.array(start.fractions), place).tolist()),
            widths=None if start.widths is None else size.named(start.widths),
        )

    def _with_size(self, fractions: Fractions, place: int) -> Fractions:
        """Fractions of the groups' variables, and of the size where there are several."""
        last = len(self._sizes) - 1
        return np.append(fractions, place / last) if last else fractions

    def _size_at(self, fractions: Fractions, budget: int) -> int:
        """The size that fractions [V] choose, or the next one that reaches the budget."""
        count = len(self._sizes)
        place = min(int(fractions[-1] * count), count - 1) if count > 1 else 0
        others = [*range(place, count), *range(place - 1, -1, -1)]
        return next((n for n in others if self._sizes[n].reaches(self._sizes[n].bounds[budget])), place)

    def _levels(self, bound: Bounds) -> list[Bounds]:
        """The bounds to make warm starts for: the budget's own, or a few where costs have none."""
        if self._sizes[0].is_modeled(bound):
            return [bound]
        least, dense = self._gflops_range()
        return [(Budget("gflops", level * dense),) for level in FREE_LEVELS if level * dense >= least]

    def _gflops_range(self) -> tuple[float, float]:
        """GFLOPs of the smallest policy, at the smallest size, and of the dense detector."""
        last = self._sizes[-1].space
        least, dense = last.cost("gflops", last.lowest), self.space.cost("gflops", self.space.dense)
        return float(least), float(dense)


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
    weights_sha256: str,
    file: SpaceFile,
    bounds: Sequence[Bounds],
    data: Mapping[str, str],
    smaller: Sequence[int] = (),
) -> dict[str, str]:
    """What a study is about; one of other weights, space, budgets or ``data`` must not be continued.

    So must none of other input sizes; where it has one, it is as before sizes could be searched.
    """
    space = json.dumps(file.model_dump(mode="json"), sort_keys=True)
    return {
        "weights": weights_sha256[:16],
        "space": sha256(space.encode()).hexdigest()[:16],
        "budgets": json.dumps([[(budget.metric, budget.limit) for budget in bound] for bound in bounds]),
        **data,
        **({INPUT_SIZE: ", ".join(map(str, smaller))} if smaller else {}),
    }
