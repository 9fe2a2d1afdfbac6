"""The codec against what Optuna itself stores, with the names and formats spelled out as files hold them."""

from types import SimpleNamespace

import numpy as np
import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution
from optuna.trial import TrialState

from autoprune.study.trial_attributes import (
    TrialAttributes,
    budget_of,
    counts,
    distributions,
    encode,
    encode_parameters,
    encode_ranking,
    encode_rung,
    fractions_of,
    inherited,
)

ONE_BUDGET = SimpleNamespace(variables=("a", "b"), budgets=(None,))
TWO_BUDGETS = SimpleNamespace(variables=("a", "b"), budgets=(20.0, 10.0))


@pytest.fixture(params=["journal", "sqlite"])
def stored(request, tmp_path):
    """The trial that holds the given attributes, after a round trip through a file."""

    def storage():
        if request.param == "sqlite":
            return optuna.storages.RDBStorage(f"sqlite:///{tmp_path}/study.db")
        backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
        return optuna.storages.JournalStorage(backend)

    opened = []

    def make(attributes):
        opened.extend([storage(), storage()])
        optuna.create_study(storage=opened[0], study_name="s").enqueue_trial({}, user_attrs=attributes)
        return optuna.load_study(storage=opened[1], study_name="s").get_trials()[0]

    yield make
    for each in opened:
        each.remove_session()
        if request.param == "sqlite":
            each.engine.dispose()


def test_names_and_formats_are_those_of_every_study_so_far():
    encoded = encode(
        origin="uniform", warm_start=0, widths={"a": 3}, reason="lost", same_as=0, repeat_of=0, losses=0,
        requeued=True, requeued_from=0,
    )  # fmt: skip
    assert encoded == {
        "origin": "uniform", "warm_start": 0, "widths": {"a": 3}, "reason": "lost", "same_as": 0,
        "repeat_of": 0, "losses": 0, "requeued": True, "requeued_from": 0,
    }  # fmt: skip
    assert encode(origin=None) == {}
    assert encode_rung(2, {"map": 0.5}) == {"rung_2": {"map": 0.5}}
    assert encode_ranking(1, "loss") == {"ranked_by_1": "loss"}


def test_what_is_written_is_read_through_a_file(stored):
    trial = stored(
        {
            **encode(origin="greedy", warm_start=0, widths={"a": 3, "b": 4}, reason="no", losses=2),
            **encode(same_as=0, repeat_of=0, requeued=True, requeued_from=0),
            **encode_rung(0, {"map": 0.1}),
            **encode_rung(1, {"map": 0.2}),
            **encode_ranking(1, "loss"),
        }
    )
    attributes = TrialAttributes(trial)
    assert (attributes.origin, attributes.warm_start, attributes.widths) == ("greedy", 0, {"a": 3, "b": 4})
    assert (attributes.reason, attributes.losses, attributes.same_as) == ("no", 2, 0)
    assert (attributes.repeat_of, attributes.requeued, attributes.requeued_from) == (0, True, 0)
    assert attributes.rungs == ({"map": 0.1}, {"map": 0.2})
    assert attributes.ranked_by == (None, "loss")


def test_a_trial_without_attributes_was_proposed_by_the_sampler(stored):
    attributes = TrialAttributes(stored({}))
    assert (attributes.origin, attributes.losses, attributes.requeued) == ("sampler", 0, False)
    assert (attributes.rungs, attributes.ranked_by) == ((), ())
    for name in ("warm_start", "widths", "reason", "same_as", "repeat_of", "requeued_from"):
        assert getattr(attributes, name) is None


def trial_of(state=TrialState.RUNNING, params=None, **attributes):
    params = params or {}
    return optuna.trial.create_trial(
        state=state,
        value=0.0 if state == TrialState.COMPLETE else None,
        params=params,
        distributions={name: FloatDistribution(0, 1) for name in params},
        user_attrs=attributes,
    )


@pytest.mark.parametrize(
    ("state", "attributes", "expected"),
    [
        (TrialState.RUNNING, {}, True),
        (TrialState.COMPLETE, {"requeued_from": 0}, True),
        (TrialState.PRUNED, {}, True),
        (TrialState.FAIL, {"reason": "no"}, True),
        (TrialState.WAITING, {}, False),
        (TrialState.FAIL, {"requeued": True}, False),
        (TrialState.COMPLETE, {"same_as": 0}, False),
        (TrialState.COMPLETE, {"repeat_of": 0}, False),
    ],
)
def test_trials_count_unless_they_wait_are_continued_or_repeat_others(state, attributes, expected):
    assert counts(trial_of(state, **attributes)) is expected


def test_the_trial_that_continues_another_has_its_policy_and_not_its_results():
    attributes = {"origin": "uniform", "warm_start": 1, "widths": {"a": 3}, "losses": 1, "repeat_of": 0}
    trial = trial_of(**attributes, rung_0={"map": 0.5}, ranked_by_0="map", reason="no", requeued=True)
    assert inherited(trial) == attributes


def test_parameters_are_fractions_and_the_index_of_the_budget_where_there_are_several():
    unit = FloatDistribution(0.0, 1.0)
    assert distributions(ONE_BUDGET) == {"a": unit, "b": unit}
    assert distributions(TWO_BUDGETS) == {"a": unit, "b": unit, "budget": CategoricalDistribution([0, 1])}
    assert encode_parameters(ONE_BUDGET, [0.25, 0.5], 0) == {"a": 0.25, "b": 0.5}
    assert encode_parameters(TWO_BUDGETS, [0.25, 0.5], 1) == {"a": 0.25, "b": 0.5, "budget": 1}
    with pytest.raises(ValueError, match="shorter"):
        encode_parameters(ONE_BUDGET, [0.25], 0)
    for plan, index in ((ONE_BUDGET, 0), (TWO_BUDGETS, 1)):
        study = optuna.create_study()
        study.enqueue_trial(encode_parameters(plan, [0.25, 0.5], index))
        study.ask(distributions(plan))
        (trial,) = study.get_trials()
        np.testing.assert_array_equal(fractions_of(trial, plan), [0.25, 0.5])
        assert budget_of(trial) == index
