"""Thompson sampling of the importance: a sampler that knows what channels are worth, and learns it better.

A policy removes the importance r_v from each of the space's variables, and sum_v w_v r_v estimates the mAP
that it loses. Were the scores right, all weights w_v would be one; no criterion's are. So they are learned
from the trials, by Bayesian linear regression with the prior that the scores are right up to a factor. A
trial is the policy with the least weighted importance on its budget, for weights drawn from the posterior
(Thompson, Biometrika 1933; Russo et al., "A Tutorial on Thompson Sampling", 2018): variables whose worth is
uncertain are explored, and each policy that is proposed might be the best.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import optuna
from numpy.typing import NDArray
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.samplers import BaseSampler
from optuna.trial import FrozenTrial

from autoprune.study.trials import Plan

Vector = NDArray[np.float64]

SPREAD = 0.5  # standard deviation of the weights before any trial: how far off the scores are taken to be
LEAST_WEIGHT = 0.1  # channels are worth something
# A draw lies at this fraction of its distance from the posterior's mean, at the next one where the policy is
# known already: with more variables than trials, whole draws of all weights would do little but explore.
BOLDNESS = (0.5, 0.75, 1, 1.5, 2, 3, 5)
NOISES = np.geomspace(0.02, 1, 18)  # standard deviations of a trial's loss, as fractions of a typical loss


class ThompsonSampler(BaseSampler):
    """Proposes one trial. It draws all parameters at once, from the study and the seed alone."""

    def __init__(self, seed: int, plan: Plan) -> None:
        """Keeps what to draw with, and what for."""
        self._random, self._plan = np.random.default_rng(seed), plan

    def infer_relative_search_space(
        self, study: optuna.Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """Every variable, and the budget where there are several."""
        space: dict[str, BaseDistribution] = {name: FloatDistribution(0, 1) for name in self._plan.variables}
        if len(self._plan.budgets) > 1:
            space["budget"] = CategoricalDistribution(list(range(len(self._plan.budgets))))
        return space

    def sample_relative(
        self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """The policy that is best for weights drawn from the posterior."""
        mean, covariance = posterior(*evidence(study, self._plan))
        noise = self._random.multivariate_normal(np.zeros(len(mean)), covariance)
        budget = int(self._random.integers(len(self._plan.budgets)))
        level = float(self._random.random())
        tried = [found.user_attrs.get("widths") for found in study.get_trials(deepcopy=False)]
        for boldness in BOLDNESS:
            weights = np.maximum(mean + boldness * noise, LEAST_WEIGHT)
            fractions = self._plan.cheapest(weights, budget, level)
            if self._plan.widths(fractions, budget) not in tried:
                break
        drawn: dict[str, Any] = dict(zip(self._plan.variables, fractions.tolist(), strict=True))
        return {**drawn, "budget": budget} if "budget" in search_space else drawn

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        """Refuses a parameter that is not of the plan."""
        raise ValueError(f"the plan has no variable {param_name!r}")


def evidence(study: optuna.Study, plan: Plan) -> tuple[Vector, Vector, Vector]:
    """What the trials say: importance removed [N, V], loss [N], and the noise of the loss [N].

    Each trial counts at the highest rung that it reached. Rungs and budgets differ in how much mAP a unit
    of importance costs, so for each the losses are divided by that rate, found by least squares through the
    dense detector's mAP, which loses nothing. A rung and budget with one trial says nothing yet.
    """
    found: dict[tuple[int, int], list[tuple[Mapping[str, int], float]]] = {}
    best = study.user_attrs.get("dense", {}).get("map")
    for trial in study.get_trials(deepcopy=False):
        rungs = [name for name in trial.user_attrs if name.startswith("rung_")]
        if not rungs or trial.user_attrs.get("requeued") or "same_as" in trial.user_attrs:
            continue
        top = max(int(name.removeprefix("rung_")) for name in rungs)
        score = float(trial.user_attrs[f"rung_{top}"]["map"])
        key = top, trial.params.get("budget", 0)
        found.setdefault(key, []).append((trial.user_attrs["widths"], score))
    count = len(plan.variables)
    rows, losses, noises = [np.zeros((0, count))], [np.zeros(0)], [np.zeros(0)]
    for trials in found.values():
        removed = plan.removed([widths for widths, _ in trials])
        scores = np.array([score for _, score in trials])
        sums = removed.sum(axis=1)
        lost = (max(scores) if best is None else best) - scores
        rate = float(sums @ lost / (sums @ sums)) if sums.any() else 0.0
        if len(trials) < 2 or rate <= 0:
            continue
        unit = float(np.median(sums))
        rows.append(removed / unit)
        losses.append(lost / (rate * unit))
        noises.append(np.full(len(trials), likeliest_noise(rows[-1], losses[-1])))
    return np.concatenate(rows), np.concatenate(losses), np.concatenate(noises)


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
