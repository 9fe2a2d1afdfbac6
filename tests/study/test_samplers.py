import typing

import numpy as np
import optuna
import pytest

from autoprune.config import Config
from autoprune.study.samplers import SAMPLERS, STARTUP_TRIALS, SamplerInputs, make_sampler


class Abc:
    """A plan of three variables in which the least importance is lost at (0.2, 0.4, 0.6), by any weights."""

    variables, budgets = ("a", "b", "c"), (None,)

    def widths(self, fractions, budget):
        return dict(zip("abc", fractions, strict=True))

    def removed(self, widths):
        return np.array([widths[name] for name in "abc"])

    def cheapest(self, weights, budget, level, near=None, reach=1):
        return np.clip(np.array([0.2, 0.4, 0.6]) + 0.1 * (weights - 1), 0, 1)


SPACE = {name: optuna.distributions.FloatDistribution(0, 1) for name in "abc"}


def run(study, name, trials, parallel=False):
    """Asks and tells; the objective is better the nearer the point is to (0.2, 0.4, 0.6)."""
    for number in range(len(study.trials), trials):
        study.sampler = make_sampler(name, SamplerInputs(100 + number, 7, parallel, Abc()))
        trial = study.ask(SPACE)
        distance = sum(
            (trial.params[key] - want) ** 2 for key, want in zip("abc", (0.2, 0.4, 0.6), strict=True)
        )
        study.tell(trial, (-distance, sum(trial.params.values())))
    return [tuple(trial.params[key] for key in "abc") for trial in study.trials]


def new_study(storage=None):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=storage, directions=["maximize", "minimize"], study_name="s", load_if_exists=True
    )


def test_the_settings_offer_exactly_these_samplers():
    assert set(typing.get_args(Config.model_fields["sampler"].annotation)) == set(SAMPLERS)


@pytest.mark.parametrize("parallel", [False, True])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_study_proposes_what_an_uninterrupted_one_does(name, parallel, tmp_path):
    total = STARTUP_TRIALS + 3
    expected = run(new_study(), name, total, parallel)

    def journal():
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study"))
        return optuna.storages.JournalStorage(backend)

    run(new_study(journal()), name, total - 1, parallel)
    assert run(new_study(journal()), name, total, parallel) == expected
    assert len(set(expected)) == total


def test_another_seed_proposes_something_else():
    first, second = new_study(), new_study()
    first.sampler, second.sampler = (
        make_sampler("tpe", SamplerInputs(seed, 7, False, Abc())) for seed in (1, 2)
    )
    assert first.ask(SPACE).params != second.ask(SPACE).params
