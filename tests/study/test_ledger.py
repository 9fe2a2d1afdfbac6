import math

import optuna
import pytest

from autoprune.errors import RunError
from autoprune.space.warm_start import WarmStart
from autoprune.study.ledger import MAX_LOSSES, Ledger
from autoprune.study.trial_attributes import encode_rung

from ..conftest import ledger_settings
from .conftest import FakePlan, measure, open_ledger, results, run


def test_runs_the_asked_number_of_trials_warm_starts_first(tmp_path):
    ledger = run(open_ledger(tmp_path))
    assert ledger.done
    assert len(ledger.finished()) == 14
    assert [r.origin for r in ledger.finished()[:3]] == ["uniform", "greedy", "sampler"]
    assert ledger.finished()[0].widths == {"a": 50, "b": 50}
    assert ledger.ask() is None


def test_no_policy_is_run_twice(tmp_path):
    ledger = run(open_ledger(tmp_path, trials=15, plan=FakePlan(size=4)))
    policies = [tuple(r.widths.values()) for r in ledger.finished()]
    assert len(policies) == len(set(policies)) == 15
    assert any(r.same_as is not None for r in ledger.records())  # 15 of 16 policies: some came up again


def test_repeated_policies_get_the_earlier_values(tmp_path):
    ledger = run(open_ledger(tmp_path, trials=15, plan=FakePlan(size=4)))
    trials = ledger.study.get_trials()
    repeated = [record for record in ledger.records() if record.same_as is not None]
    assert repeated
    for record in repeated:
        assert trials[record.number].values == trials[record.same_as].values


def test_an_exhausted_space_ends_the_search(tmp_path, monkeypatch):
    monkeypatch.setattr("autoprune.study.ledger.MAX_DUPLICATES", 40)
    plan = FakePlan(size=2)
    ledger = run(open_ledger(tmp_path, trials=50, plan=plan))
    assert ledger.done
    assert ledger.exhausted
    assert len(ledger.finished()) == 4  # two groups, each 1 or 2 wide


@pytest.mark.parametrize("sampler", ["tpe", "nsga2", "random", "qmc"])
def test_a_killed_search_continues_as_if_it_had_not_been(tmp_path, sampler):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    expected = results(run(open_ledger(tmp_path / "whole", sampler=sampler, rungs=2)))
    for stop_after in (0, 1, 5, 4):  # a fresh ledger each time, with one trial left in flight
        run(open_ledger(tmp_path / "killed", sampler=sampler, rungs=2), stop_after)
    resumed = run(open_ledger(tmp_path / "killed", sampler=sampler, rungs=2))
    assert results(resumed) == expected


def test_a_trial_killed_before_its_policy_was_known_is_asked_for_again(tmp_path):
    first = run(open_ledger(tmp_path), stop_after=4)
    first.study.ask()  # a RUNNING trial without parameters
    resumed = run(open_ledger(tmp_path))
    assert len(resumed.finished()) == 14
    assert not any(r.state == "running" for r in resumed.records())


def test_a_trial_killed_between_its_last_metrics_and_its_end_is_not_run_again(tmp_path):
    first = open_ledger(tmp_path)
    candidate = first.ask()
    first._store.write(candidate.number, encode_rung(0, measure(candidate)))
    resumed = open_ledger(tmp_path)
    assert [r.number for r in resumed.finished()] == [candidate.number]
    assert resumed.finished()[0].metrics == measure(candidate)


def test_requeueing_twice_queues_once(tmp_path):
    first = open_ledger(tmp_path)
    candidate = first.ask()
    # the driver died between the two writes of a requeue: queued, but not yet dropped
    trial = first.study.trials[candidate.number]
    first.study.enqueue_trial(trial.params, user_attrs={"requeued_from": candidate.number})
    resumed = open_ledger(tmp_path)
    states = [trial.state.name for trial in resumed.study.trials]
    assert states == ["FAIL", "WAITING"]


def test_more_trials_extend_a_finished_search(tmp_path):
    expected = results(run(open_ledger(tmp_path, trials=6)))
    extended = run(open_ledger(tmp_path, trials=9))
    assert results(extended)[:6] == expected
    assert len(extended.finished()) == 9


def test_a_trial_that_fails_counts_and_says_why(tmp_path):
    ledger = open_ledger(tmp_path, trials=3)
    ledger.fail(ledger.ask().number, "the loss is not finite")
    candidate = ledger.ask()
    assert not ledger.report(candidate.number, 0, {"map": math.nan, "gflops": 1.0})
    run(ledger)
    reasons = [r.reason for r in ledger.finished()]
    assert reasons == ["the loss is not finite", "map is not a number at rung 0", None]
    assert [r.number for r in ledger.front()] == [ledger.finished()[2].number]


def test_a_lost_worker_costs_nothing_but_time_until_it_happens_too_often(tmp_path):
    ledger = open_ledger(tmp_path, trials=2)
    lost = ledger.ask()
    for _ in range(MAX_LOSSES - 1):
        ledger.requeue_lost(lost.number, "the worker died")
        again = ledger.ask()
        assert (again.number, again.widths) == (lost.number + 1, lost.widths)
        lost = again
    ledger.requeue_lost(lost.number, "out of memory")
    assert "out of memory" in ledger.finished()[0].reason
    assert len(run(ledger).finished()) == 2


def test_workers_that_died_before_they_began_are_not_held_against_a_trial(tmp_path):
    ledger = open_ledger(tmp_path, trials=1)
    for _ in range(MAX_LOSSES + 1):
        ledger.requeue_lost(ledger.ask().number, "the node is gone", counts=False)
    assert [r.state for r in run(ledger).finished()] == ["complete"]


def test_rungs_stop_the_worse_trials_and_never_the_warm_starts(tmp_path):
    ledger = run(open_ledger(tmp_path, trials=30, rungs=2, rung_keep=0.3))
    stopped = [r for r in ledger.finished() if r.state == "stopped"]
    assert 5 < len(stopped) < 27
    assert all(len(r.rungs) == 1 for r in stopped)
    assert all(len(r.rungs) == 2 for r in ledger.finished() if r.state == "complete")
    assert {r.state for r in ledger.finished() if r.origin in ("uniform", "greedy")} == {"complete"}


def test_a_rung_where_all_have_no_map_stops_nobody(tmp_path):
    ledger = open_ledger(tmp_path, trials=8, rungs=2, rung_keep=0.1)
    while (candidate := ledger.ask()) is not None:
        assert ledger.report(candidate.number, 0, {"map": 0.0, "gflops": 1.0})
        assert not ledger.report(candidate.number, 1, measure(candidate))
    assert {r.state for r in ledger.finished()} == {"complete"}


def test_a_rung_where_most_have_no_map_ranks_by_the_loss_and_the_record_says_so(tmp_path):
    ledger = open_ledger(tmp_path, trials=12, rungs=2, rung_keep=0.5)
    losses = iter([3.0, 3.1, 2.0, 2.5, 2.1, 9.0, 1.0, 8.0, 4.0, 0.5, 7.0, 6.0])
    seen, expected = [], {}
    while (candidate := ledger.ask()) is not None:
        loss = next(losses)
        lucky = 0.05 if loss > 7 else 0.001  # the few with a mAP are those of the highest loss
        went_on = ledger.report(candidate.number, 0, {"map": lucky, "loss": loss, "gflops": 1.0})
        better = sum(other < loss for other in seen)
        warm, first = candidate.origin != "sampler", len(seen) < 3
        assert went_on == (warm or first or better < 0.5 * (len(seen) + 1))
        expected[candidate.number] = None if warm else "loss"
        seen.append(loss)
        if went_on:
            ledger.report(candidate.number, 1, measure(candidate))
    assert {r.number: r.ranked_by[0] for r in ledger.finished()} == expected
    assert "stopped" in {r.state for r in ledger.finished()}


def test_front_is_that_of_the_trials_at_the_top_rung(tmp_path):
    ledger = run(open_ledger(tmp_path, trials=30, rungs=2))
    done = [r for r in ledger.finished() if r.state == "complete"]

    def beats(x, y):
        better = x["map"] >= y["map"] and x["gflops"] <= y["gflops"]
        return better and (x["map"], x["gflops"]) != (y["map"], y["gflops"])

    expected = {r.number for r in done if not any(beats(o.metrics, r.metrics) for o in done)}
    assert {r.number for r in ledger.front()} == expected


def test_several_budgets_become_a_parameter(tmp_path):
    starts = (WarmStart("uniform", 0, (0.5, 0.5)), WarmStart("uniform", 1, (0.6, 0.6)))
    ledger = run(open_ledger(tmp_path, plan=FakePlan(budgets=(20.0, 10.0), warm_starts=starts)))
    budgets = [r.budget for r in ledger.finished()]
    assert budgets[:2] == [20.0, 10.0]
    assert set(budgets) == {20.0, 10.0}


def test_the_sampler_sees_the_budget_and_the_front_the_true_cost(tmp_path):
    ledger = run(open_ledger(tmp_path, plan=FakePlan(budgets=(20.0,)), trials=4))
    assert {trial.values[1] for trial in ledger.study.trials} == {20.0}
    assert next(r.metrics["gflops"] for r in ledger.finished()) == 10.0


def test_a_study_of_another_space_or_other_objectives_is_refused(tmp_path):
    open_ledger(tmp_path)
    with pytest.raises(RunError, match="another search: it differs in its space"):
        open_ledger(tmp_path, plan=FakePlan(identity={"space": "s2"}))
    with pytest.raises(RunError, match="other objectives"):
        open_ledger(tmp_path, objectives=("map",))


def test_a_study_of_another_version_is_refused_in_plain_words(tmp_path, monkeypatch):
    with monkeypatch.context() as older:
        older.setattr("autoprune.study.store.FORMAT", 1)
        open_ledger(tmp_path)
    with pytest.raises(
        RunError, match=r"made by another version of autoprune .*; continue it with that version"
    ):
        open_ledger(tmp_path)


def test_a_storage_that_cannot_be_opened_is_refused_in_one_line():
    with pytest.raises(RunError, match=r"cannot open the study s in nosuch://x: .*check --storage") as raised:
        Ledger("nosuch://x", "s", FakePlan(), ledger_settings(trials=1))
    assert "\n" not in str(raised.value)


def test_an_sqlite_url_does_as_well(tmp_path):
    url = f"sqlite:///{tmp_path}/study.db"
    first = Ledger(url, "s", FakePlan(), ledger_settings(trials=4))
    run(first, stop_after=2)
    resumed = run(Ledger(url, "s", FakePlan(), ledger_settings(trials=4)))
    assert len(resumed.finished()) == 4
    for storage in (first._store._storage, resumed._store._storage):
        storage.remove_session()


def test_optuna_sees_an_ordinary_study(tmp_path):
    """optuna-dashboard opens the journal while the search runs."""
    run(open_ledger(tmp_path, trials=5))
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "study.journal"))
    study = optuna.load_study(study_name="s", storage=optuna.storages.JournalStorage(backend))
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert all(set(trial.params) == {"a", "b"} for trial in study.trials)


def test_a_trial_whose_worker_is_lost_after_the_space_is_exhausted_is_run_again(tmp_path, monkeypatch):
    monkeypatch.setattr("autoprune.study.ledger.MAX_DUPLICATES", 40)
    ledger = open_ledger(tmp_path, trials=50, plan=FakePlan(size=2))
    in_flight = [ledger.ask() for _ in range(4)]  # all policies of two groups, each 1 or 2 wide
    assert ledger.ask() is None
    assert ledger.exhausted
    ledger.requeue_lost(in_flight[1].number, "its node left")
    assert not ledger.done
    again = ledger.ask()
    assert again.widths == in_flight[1].widths
    assert ledger.ask() is None
    for candidate in (in_flight[0], *in_flight[2:], again):
        ledger.report(candidate.number, 0, measure(candidate))
    assert ledger.ask() is None
    assert ledger.done
    assert {r.state for r in ledger.finished()} == {"complete"}
    assert len(ledger.finished()) == 4
