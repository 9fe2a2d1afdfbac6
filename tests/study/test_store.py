"""What survives a kill between two writes, and what one trial takes from another."""

import threading
from contextlib import nullcontext, suppress

import optuna
import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState

from autoprune.errors import RunError
from autoprune.study.store import TrialStore, waiting
from autoprune.study.trial_attributes import TrialAttributes, encode, encode_rung

from ..conftest import FakePlan

OBJECTIVES = ("map", "gflops")


@pytest.fixture
def open_store(tmp_path):
    return lambda plan=None: TrialStore(tmp_path / "study.journal", "s", plan or FakePlan(), OBJECTIVES)


@pytest.fixture
def store(open_store):
    return open_store()


def ask(store, seed=0, **attributes):
    """A running trial with widths."""
    trial = store.ask(RandomSampler(seed=seed))
    store.write(trial.number, encode(widths={"a": seed, "b": 1}, **attributes))
    return store.trial(trial.number)


def test_a_trial_from_the_queue_comes_before_the_samplers(store):
    store.enqueue((0.25, 0.75), 0, encode(origin="uniform", warm_start=0))
    first, second = store.ask(RandomSampler(seed=0)), store.ask(RandomSampler(seed=0))
    assert first.params == {"a": 0.25, "b": 0.75}
    assert TrialAttributes(first).origin == "uniform"
    assert TrialAttributes(second).origin == "sampler"
    assert {first.state, second.state} == {TrialState.RUNNING}


def test_a_requeued_trial_is_continued_by_another_with_the_same_policy(store):
    lost = ask(store, seed=3)
    store.write(lost.number, encode_rung(0, {"map": 0.5, "gflops": 1.0}))
    store.requeue(store.trial(lost.number), losses=1)
    (queued,) = waiting(store.trials())
    assert (queued.requeued_from, queued.losses, queued.widths) == (lost.number, 1, {"a": 3, "b": 1})
    assert store.records() == []
    again = store.ask(RandomSampler(seed=9))
    assert again.params == lost.params
    assert [record.number for record in store.records()] == [again.number]
    assert store.records()[0].rungs == ()  # it is evaluated from the bottom again


@pytest.mark.parametrize("writes", [0, 1, 2, 3])
def test_a_requeue_that_is_cut_short_loses_nothing_on_a_storage_without_batches(
    store, open_store, monkeypatch, writes
):
    """Killed after 0, 1, … of its writes, the trial is running or queued: never neither."""
    trial = ask(store)
    monkeypatch.setattr(store, "batch", nullcontext)
    left = [writes]

    def limited(method):
        def call(*arguments, **options):
            if left[0] == 0:
                raise KeyboardInterrupt
            left[0] -= 1
            return method(*arguments, **options)

        return call

    for name in ("create_new_trial", "set_trial_user_attr", "set_trial_state_values"):
        monkeypatch.setattr(store._storage, name, limited(getattr(store._storage, name)))
    with suppress(KeyboardInterrupt):
        store.requeue(trial)
    states = {t.number: t.state for t in open_store().trials()}
    alive = [n for n, state in states.items() if state in (TrialState.RUNNING, TrialState.WAITING)]
    assert alive
    assert len(alive) == (1 if writes in (0, 3) else 2)


@pytest.mark.parametrize("end", ["complete", "stop", "fail"])
def test_a_policy_that_came_up_before_gets_the_earlier_result(store, end):
    first, second = ask(store), ask(store)
    arguments = ([0.5, 1.0],) if end == "complete" else ()
    getattr(store, end)(first.number, *arguments)
    store.copy_result(second.number, first.number)
    one, other = store.trials()
    assert (other.state, other.values) == (one.state, one.values)
    assert TrialAttributes(other).same_as == first.number


def test_a_repeat_has_the_parameters_and_widths_of_what_it_repeats(store):
    first = ask(store, seed=5)
    store.complete(first.number, [0.5, 1.0])
    (record,) = store.records()
    store.enqueue_repeat(record)
    repeat = store.ask(RandomSampler(seed=1))
    attributes = TrialAttributes(repeat)
    assert repeat.params == first.params
    assert (attributes.repeat_of, attributes.widths) == (first.number, {"a": 5, "b": 1})


def test_a_trial_is_sampled_once_all_its_parameters_are_known(store):
    assert store.is_sampled(ask(store))
    store.study.ask()  # as by a driver that was killed before it wrote parameters
    assert not store.is_sampled(store.trials()[-1])


def test_notes_are_kept_for_the_next_driver(store, open_store):
    store.note("dense", {"map": 0.4})
    assert open_store().notes["dense"] == {"map": 0.4}


def test_a_driver_in_a_database_keeps_others_out_until_it_lets_go(tmp_path, monkeypatch):
    from autoprune.study import lease

    url = f"sqlite:///{tmp_path}/study.db"
    first = TrialStore(url, "s", FakePlan(), OBJECTIVES)
    monkeypatch.setattr(lease.os, "getpid", lambda: 1)  # another process, which lives
    with pytest.raises(RunError, match="in use by another driver"):
        TrialStore(url, "s", FakePlan(), OBJECTIVES)
    monkeypatch.undo()
    first.release()
    second = TrialStore(url, "s", FakePlan(), OBJECTIVES)
    second.release()
    for store in (first, second):
        store._storage.remove_session()


def test_a_study_records_what_an_earlier_version_did_not_and_refuses_other_values_since(open_store):
    open_store(FakePlan(identity={"space": "s1"}))
    open_store(FakePlan(identity={"space": "s1", "validation data": "d1"}))
    with pytest.raises(
        RunError, match="it differs in its validation data; restore that, or choose another --out"
    ):
        open_store(FakePlan(identity={"space": "s1", "validation data": "d2"}))


def test_a_study_that_no_ledger_made_is_refused(tmp_path, open_store):
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    study = optuna.create_study(
        storage=optuna.storages.JournalStorage(backend),
        study_name="s",
        directions=["maximize", "minimize"],
    )
    study.add_trial(optuna.trial.create_trial(values=[0.5, 1.0]))
    with pytest.raises(RunError, match=r"another version of autoprune \(its format is None"):
        open_store()


def test_a_kill_between_the_first_notes_is_made_up_for(tmp_path, open_store, monkeypatch):
    plan, note = FakePlan(budgets=(2.0, 1.0)), TrialStore.note

    def killed(self, name, value):
        note(self, name, value)
        raise KeyboardInterrupt

    for _ in range(2):  # after the first note, and after the second
        with monkeypatch.context() as context:
            context.setattr(TrialStore, "note", killed)
            with pytest.raises(KeyboardInterrupt):
                open_store(plan)
    notes = open_store(plan).notes
    assert notes["budgets"] == [2.0, 1.0]
    assert notes["identity"]["format"] == "2"


def test_who_can_not_open_a_study_in_a_database_lets_others_in(tmp_path):
    from autoprune.study.ledger import Ledger

    from ..conftest import ledger_settings

    url = f"sqlite:///{tmp_path}/study.db"
    store = TrialStore(url, "s", FakePlan(), OBJECTIVES)
    trial = ask(store)
    store.write(trial.number, encode_rung(0, {"map": "high", "gflops": 1.0}))
    store.fail(trial.number)
    store.release()
    others = threading.enumerate()
    with pytest.raises(RunError, match="no valid map"):
        Ledger(url, "s", FakePlan(), ledger_settings(trials=1))
    assert store.study.user_attrs["driver"] is None
    assert "lease" not in [thread.name for thread in threading.enumerate() if thread not in others]
    store._storage.remove_session()
