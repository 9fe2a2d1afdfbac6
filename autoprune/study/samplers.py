"""The Optuna samplers a search can use. Each is made anew for every trial from that trial's own seed.

A sampler so made is a function of the study and the seed, so a resumed search on one worker proposes
what an uninterrupted one would have.
"""

import warnings
from collections.abc import Callable

import optuna
from optuna.samplers import BaseSampler

from autoprune.study.thompson import ThompsonSampler
from autoprune.study.trials import Plan

STARTUP_TRIALS = 8
POPULATION = 16


def _tpe(seed: int, run_seed: int, parallel: bool, plan: Plan) -> BaseSampler:
    return optuna.samplers.TPESampler(
        seed=seed, multivariate=True, constant_liar=parallel, n_startup_trials=STARTUP_TRIALS
    )


def _nsga2(seed: int, run_seed: int, parallel: bool, plan: Plan) -> BaseSampler:
    return optuna.samplers.NSGAIISampler(seed=seed, population_size=POPULATION)


def _gp(seed: int, run_seed: int, parallel: bool, plan: Plan) -> BaseSampler:
    return optuna.samplers.GPSampler(seed=seed, n_startup_trials=STARTUP_TRIALS)


def _random(seed: int, run_seed: int, parallel: bool, plan: Plan) -> BaseSampler:
    return optuna.samplers.RandomSampler(seed=seed)


def _qmc(seed: int, run_seed: int, parallel: bool, plan: Plan) -> BaseSampler:
    # One scrambled sequence a run: the place in it is kept in the study.
    return optuna.samplers.QMCSampler(
        seed=run_seed,
        scramble=True,
        independent_sampler=optuna.samplers.RandomSampler(seed=seed),
        warn_independent_sampling=False,
    )


def _thompson(seed: int, run_seed: int, parallel: bool, plan: Plan) -> BaseSampler:
    return ThompsonSampler(seed, plan)


SAMPLERS: dict[str, Callable[[int, int, bool, Plan], BaseSampler]] = {
    "thompson": _thompson,
    "tpe": _tpe,
    "nsga2": _nsga2,
    "gp": _gp,
    "random": _random,
    "qmc": _qmc,
}


def make_sampler(name: str, seed: int, run_seed: int, parallel: bool, plan: Plan) -> BaseSampler:
    """Makes the sampler that proposes one trial.

    Args:
        name: a key of `SAMPLERS`.
        seed: the trial's seed.
        run_seed: the run's seed, for what must not change from trial to trial.
        parallel: several trials run at once, so those in flight count as poor (the constant liar).
        plan: space and budgets, for a sampler that knows what they are.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        return SAMPLERS[name](seed, run_seed, parallel, plan)
