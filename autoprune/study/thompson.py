"""Thompson sampling of the importance: a sampler that knows what channels are worth, and learns it better.

A policy removes the importance r_v from each of the space's variables, and sum_v w_v r_v estimates the mAP
that it loses. Were the scores right, all weights w_v would be one; no criterion's are. So they are learned
from the trials, by Bayesian linear regression with the prior that the scores are right up to a factor. A
trial is the policy with the least weighted importance on its budget, for weights drawn from the posterior
(Thompson, Biometrika 1933; Russo et al., "A Tutorial on Thompson Sampling", 2018): variables whose worth is
uncertain are explored, and each policy that is proposed might be the best.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from autoprune.study.records import Record
from autoprune.study.trial_attributes import distributions, encode_parameters
from autoprune.study.trials import SAMPLED, Plan

Vector = NDArray[np.float64]

SPREAD = 0.5  # standard deviation of the weights before any trial: how far off the scores are taken to be
LEAST_WEIGHT = 0.1  # channels are worth something
# A draw lies at this fraction of its distance from the posterior's mean, at the next one where the policy is
# known already: with more variables than trials, whole draws of all weights would do little but explore.
BOLDNESS = (0.5, 0.75, 1, 1.5, 2, 3, 5)
LOCAL = 0.5  # fraction of the proposals that stay near one of the best trials
BEST = 3  # how many those are
LOCAL_ATTEMPTS = 4  # where all of these are known already, the next ones may lie anywhere
FURTHEST = 4  # levels that a variable of such a proposal moves, at most
NOISES = np.geomspace(0.02, 1, 18)  # standard deviations of a trial's loss, as fractions of a typical loss


class ThompsonSampler(BaseSampler):
    """Proposes one trial: draws all its parameters at once, from the records and the seed alone.

    Args:
        seed: of the draw.
        plan: space and budgets.
        records: the trials so far.
        dense_map: mAP of the dense detector, if it is known.
    """

    def __init__(
        self, seed: int, plan: Plan, records: Sequence[Record] = (), dense_map: float | None = None
    ) -> None:
        self._random, self._plan = np.random.default_rng(seed), plan
        self._records, self._dense_map = records, dense_map

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every variable, and the budget where there are several."""
        return distributions(self._plan)

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The policy that is best for weights drawn from the posterior."""
        mean, covariance = posterior(*evidence(self._records, self._plan, self._dense_map))
        noise = self._random.multivariate_normal(np.zeros(len(mean)), covariance)
        budget = self._next_budget()
        level = float(self._random.random())
        near, reach = self._neighborhood(budget)
        tried = [record.widths for record in self._records]
        for attempt, boldness in enumerate(BOLDNESS):
            if attempt == LOCAL_ATTEMPTS:
                near = None
            weights = np.maximum(mean + boldness * noise, LEAST_WEIGHT)
            fractions = self._plan.cheapest(weights, budget, level, near, reach)
            if self._plan.widths(fractions, budget) not in tried:
                break
        return encode_parameters(self._plan, fractions.tolist(), budget)

    def _neighborhood(self, budget: int) -> tuple[Mapping[str, int] | None, int]:
        """Half of the proposals stay near one of the best trials on the budget: its widths, and how near."""
        global_, place, reach = self._random.random(3)
        limit = self._plan.budgets[budget]
        trials = [record for record in self._records if record.rungs and record.budget == limit]
        trials.sort(key=lambda record: (-len(record.rungs), -float(record.rungs[-1]["map"])))
        if limit is None or not trials or global_ < 1 - LOCAL:
            return None, 0
        return trials[int(place * min(BEST, len(trials)))].widths, 1 + int(reach * FURTHEST)

    def _next_budget(self) -> int:
        """The budget with the fewest proposals so far, so that none is left behind; of several, any."""
        # repeats of known policies count: a budget without new ones must not be chosen forever
        proposed = Counter(record.budget for record in self._records if record.origin == SAMPLED)
        counts = [proposed[limit] for limit in self._plan.budgets]
        fewest = [index for index, count in enumerate(counts) if count == min(counts)]
        return fewest[int(self._random.integers(len(fewest)))]

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuses a parameter that is not of the plan."""
        raise ValueError(f"the plan has no variable {param_name!r}")


class Evidence(NamedTuple):
    """What N trials say of V variables, in units in which a typical policy removes one.

    Attributes:
        removed: importance removed, [N, V].
        lost: mAP lost, [N].
        noise: standard deviation of ``lost``, [N].
    """

    removed: Vector
    lost: Vector
    noise: Vector


def evidence(records: Sequence[Record], plan: Plan, dense_map: float | None) -> Evidence:
    """What the trials say of the variables' weights.

    Each trial counts at the highest rung that it reached. Rungs and budgets differ in how much mAP a unit
    of importance costs, so for each the losses are divided by that rate, found by least squares through the
    dense detector's mAP, which loses nothing. A rung and budget with one trial says nothing yet.

    Args:
        records: the trials so far; a repeat is evidence of its own.
        plan: space and budgets.
        dense_map: mAP of the dense detector; ``None`` takes the best trial of each rung and budget instead.
    """
    comparable: dict[tuple[int, float | None], list[Record]] = {}
    for record in records:
        if record.rungs and record.same_as is None:
            comparable.setdefault((len(record.rungs), record.budget), []).append(record)
    variables = len(plan.variables)
    rows, losses, noises = [np.zeros((0, variables))], [np.zeros(0)], [np.zeros(0)]
    for trials in comparable.values():
        removed = plan.removed([record.widths for record in trials])
        scores = np.array([float(record.rungs[-1]["map"]) for record in trials])
        sums = removed.sum(axis=1)
        lost = (scores.max() if dense_map is None else dense_map) - scores
        rate = float(sums @ lost / (sums @ sums)) if sums.any() else 0.0
        unit = float(np.median(sums))
        if len(trials) < 2 or rate <= 0 or unit <= 0:  # most removed what no score values
            continue
        rows.append(removed / unit)
        losses.append(lost / (rate * unit))
        noises.append(np.full(len(trials), likeliest_noise(rows[-1], losses[-1])))
    return Evidence(np.concatenate(rows), np.concatenate(losses), np.concatenate(noises))


def likeliest_noise(removed: Vector, lost: Vector, spread: float = SPREAD) -> float:
    """The noise under which trials are the most probable: what weights do not explain (type-II likelihood).

    Args:
        removed: X, [N, V].
        lost: [N], of the distribution N(X 1, spread² X Xᵀ + noise² I).
        spread: standard deviation of each weight before any trial.
    """
    vectors, singular, _ = np.linalg.svd(removed, full_matrices=False)
    unexpected = lost - removed.sum(axis=1)
    along = (vectors.T @ unexpected) ** 2
    variances = (spread * singular)[:, None] ** 2 + NOISES**2  # [min(N, V), levels]
    explained = (np.log(variances) + along[:, None] / variances).sum(axis=0)
    # No weights reach the other directions: there all is noise.
    others, beyond = len(lost) - len(singular), max(float(unexpected @ unexpected - along.sum()), 0.0)
    return float(NOISES[np.argmin(explained + others * np.log(NOISES**2) + beyond / NOISES**2)])


def posterior(removed: Vector, lost: Vector, noise: Vector, spread: float = SPREAD) -> tuple[Vector, Vector]:
    """Mean [V] and covariance [V, V] of the weights.

    The conjugate form of w ~ N(1, spread² I), lost = removed w + e, e_n ~ N(0, noise_n²): the precision is
    I / spread² + Xᵀ N⁻² X, the mean 1 + covariance Xᵀ N⁻² (lost - X 1).

    Args:
        removed: X, [N, V], in units in which a typical row sums to one.
        lost: [N], in the same units.
        noise: standard deviation of ``lost``, [N].
        spread: standard deviation of each weight before any trial.
    """
    weighted = removed / noise[:, None]
    precision = np.eye(removed.shape[1]) / spread**2 + weighted.T @ weighted
    covariance: Vector = np.asarray(np.linalg.inv(precision), dtype=np.float64)
    residual = (lost - removed.sum(axis=1)) / noise
    mean: Vector = 1 + covariance @ (weighted.T @ residual)
    return mean, covariance
