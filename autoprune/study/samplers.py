"""The Optuna samplers a search can use. Each trial has a sampler of its own, made from the trial's seed.

Such a sampler is a function of the study and the seed, so a resumed search on one worker proposes
what an uninterrupted one would have.
"""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import optuna
from optuna.samplers import BaseSampler

from autoprune.study.records import Record
from autoprune.study.thompson import ThompsonSampler
from autoprune.study.trials import Plan

STARTUP_TRIALS = 8
POPULATION = 16


@dataclass(frozen=True)
class SamplerInputs:
    """What a sampler may use to propose one trial; Optuna's own read the study besides.

    Attributes:
        seed: the trial's seed.
        run_seed: the run's seed, for what must not change from trial to trial.
        parallel: several trials run at once, so those in flight count as poor (the constant liar).
        plan: space and budgets.
        records: the trials so far.
        dense_map: mAP of the dense detector, if it is known.
    """

    seed: int
    run_seed: int
    parallel: bool
    plan: Plan
    records: Sequence[Record] = ()
    dense_map: float | None = None


def _tpe(inputs: SamplerInputs) -> BaseSampler:
    return optuna.samplers.TPESampler(
        seed=inputs.seed,
        multivariate=True,
        constant_liar=inputs.parallel,
        n_startup_trials=STARTUP_TRIALS,
    )


def _nsga2(inputs: SamplerInputs) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=inputs.seed, population_size=POPULATION)


def _gp(inputs: SamplerInputs) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=inputs.seed, n_startup_trials=STARTUP_TRIALS)


def _random(inputs: SamplerInputs) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=inputs.seed)


def _qmc(inputs: SamplerInputs) -> BaseSampler:
    # One scrambled sequence per run: the place in it is kept in the study.
    return optuna.samplers.QMCSampler(
        seed=inputs.run_seed,
        scramble=True,
        independent_sampler=optuna.samplers.RandomSampler(seed=inputs.seed),
        warn_independent_sampling=False,
    )


def _thompson(inputs: SamplerInputs) -> BaseSampler:
    return ThompsonSampler(inputs.seed, inputs.plan, inputs.records, inputs.dense_map)


SAMPLERS: dict[str, Callable[[SamplerInputs], BaseSampler]] = {
    "thompson": _thompson,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "random": _random,
    "qmc": _qmc,
}


def make_sampler(name: str, inputs: SamplerInputs) -> BaseSampler:
    """Makes the sampler that proposes one trial; ``name`` is a key of `SAMPLERS`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](inputs)
