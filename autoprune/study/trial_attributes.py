"""What a trial holds in the Optuna study, and of which type: the one place that spells the names.

Parameters: one float in [0, 1] for each variable of the space and, where a run has several budgets, the
categorical ``budget``, an index. User attributes, as JSON:

| name | value | written |
|---|---|---|
| `origin` | name of the warm start; absent: proposed by the sampler | as the trial is enqueued |
| `warm_start` | index among the plan's warm starts | as the trial is enqueued |
| `repeat_of` | number of the trial that this one re-evaluates with another seed | as the trial is enqueued |
| `requeued_from` | number of the interrupted trial that this one continues | as the trial is enqueued |
| `losses` | workers that were lost with this policy so far | as the trial is enqueued |
| `widths` | channels that each group keeps, and `input size` if searched | as the trial starts, or earlier |
| `rung_N` | metrics at rung N | as the rung is reported |
| `maps_N` | mAP on prefixes of the images and resamples of them (`data.rivals`) | as the rung is reported |
| `ranked_by_N` | metric that the trials were compared by at rung N | as the rung is reported |
| `reason` | why the trial failed | as the trial ends |
| `same_as` | number of the trial that had the same policy | as the trial ends |
| `requeued` | true: another trial continues this one, which is to be ignored | as the trial ends |

Studies of earlier versions hold the same, so neither names nor formats may change.
"""

from collections.abc import Mapping, Sequence
from itertools import count, takewhile
from typing import Any

import numpy as np
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial, TrialState

from autoprune.study.trials import SAMPLED, Metrics, Plan

Encoded = dict[str, Any]
_BUDGET = "budget"
_INHERITED = ("origin", "warm_start", "widths", "losses", "repeat_of")  # by the trial that continues another


class TrialAttributes:
    """The attributes of one trial, each decoded when it is read: a ledger reads thousands of trials.

    Args:
        trial: as Optuna returns it.
    """

    __slots__ = ("_encoded",)

    def __init__(self, trial: FrozenTrial) -> None:
        self._encoded: Mapping[str, Any] = trial.user_attrs

    @property
    def origin(self) -> str:
        """Name of the warm start, or `SAMPLED`."""
        return str(self._encoded.get("origin", SAMPLED))

    @property
    def warm_start(self) -> int | None:
        """Index among the plan's warm starts."""
        return self._encoded.get("warm_start")

    @property
    def widths(self) -> dict[str, int] | None:
        """Channels that each group keeps; ``None`` until they are known."""
        widths = self._encoded.get("widths")
        return None if widths is None else dict(widths)

    @property
    def rungs(self) -> tuple[Metrics, ...]:
        """Metrics at each rung that the trial reached."""
        names = takewhile(self._encoded.__contains__, (f"rung_{rung}" for rung in count()))
        return tuple(self._encoded[name] for name in names)

    @property
    def maps(self) -> tuple[str | None, ...]:
        """For each rung that the trial reached, its mAP on prefixes of the images, if that was kept."""
        return tuple(self._encoded.get(f"maps_{rung}") for rung in range(len(self.rungs)))

    @property
    def ranked_by(self) -> tuple[str | None, ...]:
        """For each rung that the trial reached, the metric that it was compared by, if it was."""
        return tuple(self._encoded.get(f"ranked_by_{rung}") for rung in range(len(self.rungs)))

    @property
    def reason(self) -> str | None:
        """Why the trial failed."""
        return self._encoded.get("reason")

    @property
    def same_as(self) -> int | None:
        """Number of the trial that had the same policy."""
        return self._encoded.get("same_as")

    @property
    def repeat_of(self) -> int | None:
        """Number of the trial that this one re-evaluates."""
        return self._encoded.get("repeat_of")

    @property
    def losses(self) -> int:
        """Workers that were lost with this policy so far."""
        return int(self._encoded.get("losses", 0))

    @property
    def requeued(self) -> bool:
        """Whether another trial continues this one."""
        return bool(self._encoded.get("requeued"))

    @property
    def requeued_from(self) -> int | None:
        """Number of the trial that this one continues."""
        return self._encoded.get("requeued_from")


def encode(
    *,
    origin: str | None = None,
    warm_start: int | None = None,
    widths: Mapping[str, int] | None = None,
    reason: str | None = None,
    same_as: int | None = None,
    repeat_of: int | None = None,
    losses: int | None = None,
    requeued: bool | None = None,
    requeued_from: int | None = None,
) -> Encoded:
    """Attributes as the study holds them; those that are ``None`` are omitted."""
    given = {
        "origin": origin,
        "warm_start": warm_start,
        "widths": None if widths is None else dict(widths),
        "reason": reason,
        "same_as": same_as,
        "repeat_of": repeat_of,
        "losses": losses,
        "requeued": requeued,
        "requeued_from": requeued_from,
    }
    return {name: value for name, value in given.items() if value is not None}


def encode_rung(rung: int, metrics: Metrics, maps: str | None = None) -> Encoded:
    """The attributes that hold a trial's metrics at a rung, and its mAP on prefixes of the images."""
    return {f"rung_{rung}": dict(metrics), **({} if maps is None else {f"maps_{rung}": maps})}


def encode_ranking(rung: int, metric: str) -> Encoded:
    """The attribute that holds by which metric a trial was compared at a rung."""
    return {f"ranked_by_{rung}": metric}


def inherited(trial: FrozenTrial) -> Encoded:
    """The attributes that the trial which continues this one starts with."""
    return {name: trial.user_attrs[name] for name in _INHERITED if name in trial.user_attrs}


def counts(trial: FrozenTrial) -> bool:
    """Whether a trial is one of those asked for: finished or in flight, and no repeat of another."""
    attributes = TrialAttributes(trial)
    return trial.state != TrialState.WAITING and not (
        attributes.requeued or attributes.same_as is not None or attributes.repeat_of is not None
    )


def distributions(plan: Plan) -> dict[str, BaseDistribution]:
    """The parameters of a trial: every variable, and the budget's index where there are several."""
    space: dict[str, BaseDistribution] = {name: FloatDistribution(0.0, 1.0) for name in plan.variables}
    if len(plan.budgets) > 1:
        space[_BUDGET] = CategoricalDistribution(list(range(len(plan.budgets))))
    return space


def encode_parameters(plan: Plan, fractions: Sequence[float], budget: int) -> Encoded:
    """A trial's parameters from fractions [variables] and the index of their budget."""
    parameters: Encoded = dict(zip(plan.variables, fractions, strict=True))
    return {**parameters, _BUDGET: budget} if len(plan.budgets) > 1 else parameters


def fractions_of(trial: FrozenTrial, plan: Plan) -> NDArray[np.float64]:
    """A trial's fractions, [variables]."""
    return np.array([trial.params[name] for name in plan.variables])


def budget_of(trial: FrozenTrial) -> int:
    """Index of a trial's budget."""
    return int(trial.params.get(_BUDGET, 0))
