"""A study that goes on with other data: as a new one would, beside the trials that were measured before."""

import optuna
import pytest

from autoprune.errors import RunError
from autoprune.study.earlier_data import EARLIER
from autoprune.study.ledger import Ledger
from autoprune.study.records import read_records
from autoprune.study.trial_attributes import encode

from ..conftest import ledger_settings
from .conftest import FakePlan, measure, results, run

BEFORE, AFTER = (
    FakePlan(identity={"space": "s", "data": "d1"}),
    FakePlan(identity={"space": "s", "data": "d2"}),
)


@pytest.fixture(params=["journal", "sqlite"])
def place(request, tmp_path):
    return tmp_path / "study.journal" if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


def trials_at(place):
    """Fewer in a database, which takes a tenth of a second for each."""
    return 4 if str(place).startswith("sqlite") else 6


def open_ledger(place, plan, accepts=("data",), **settings):
    settings = ledger_settings(**{"trials": trials_at(place), "rungs": 2, **settings})
    return Ledger(place, "s", plan, settings, accepts)


def on_other_data(candidate, rung=0):
    """Lower, and best at other widths: the highest mAP before is better than all of these."""
    metrics = measure(candidate, rung)
    return {**metrics, "map": metrics["map"] / 10 + candidate.widths["a"] / 1000}


def begin(place, trials=None, **settings):
    """A study on the first data, finished, but for one trial in flight and one in the queue."""
    trials = trials or trials_at(place)
    first = run(open_ledger(place, BEFORE, trials=trials, **settings), stop_after=trials - 1)
    first.note("dense", {"map": 0.9})
    first.note("data", {"validation data": {"images": 8, "boxes": 30}})
    first._store.enqueue((0.1, 0.9), 0, encode(origin="uniform"))
    first.release()
    return {r.number: (r.state, dict(r.metrics)) for r in first.finished() if r.state != "running"}


@pytest.mark.parametrize("sampler", ["thompson", "tpe", "nsga2", "random"])
def test_it_proposes_ranks_and_stops_as_a_new_study_does(tmp_path, sampler, monkeypatch):
    if sampler == "thompson":
        monkeypatch.setattr(FakePlan, "removed", lambda self, widths: 100 - _array(widths), raising=False)
        monkeypatch.setattr(
            FakePlan, "cheapest", lambda self, weights, *_: weights / (1 + weights), raising=False
        )
    settings = {"sampler": sampler, "confirm": 2, "trials": 20}
    begin(tmp_path / "one.journal", trials=20, sampler=sampler, confirm=2)
    changed = run(open_ledger(tmp_path / "one.journal", AFTER, **settings), measure=on_other_data)
    new = run(open_ledger(tmp_path / "new.journal", AFTER, **settings), measure=on_other_data)
    assert results(changed) == results(new)
    assert [dict(r.metrics) for r in changed.front()] == [dict(r.metrics) for r in new.front()]
    again = [[dict(m) for m in r.again] for r in changed.finished()]
    assert again == [[dict(m) for m in r.again] for r in new.finished()]
    assert any(again)


def _array(widths):
    import numpy as np

    return np.array([[each["a"], each["b"]] for each in widths], dtype=float).reshape(len(widths), 2)


def test_earlier_trials_keep_their_figures_and_count_for_nothing(place):
    figures = begin(place)
    second = open_ledger(place, AFTER)
    assert second.finished() == second.front() == []
    assert second.notes["dense"] == {}
    assert second.notes["identity"]["data"] == "d2"
    (change,) = second.notes[EARLIER]
    assert (change["dense"], change["data"]) == (
        {"map": 0.9},
        {"validation data": {"images": 8, "boxes": 30}},
    )
    assert {r.number: (r.state, dict(r.metrics)) for r in second.records()} == figures
    assert all(r.other_data and not r.counts for r in second.records())
    run(second, measure=on_other_data)
    assert len(second.finished()) == trials_at(place)
    assert min(r.number for r in second.finished()) > max(figures)
    assert not any(t.state == optuna.trial.TrialState.WAITING for t in second._store._whole.get_trials())
    second.release()
    third = open_ledger(place, AFTER)  # nothing changed: nothing is set aside
    assert len(third.notes[EARLIER]) == 1
    assert results(third) == results(second)
    third.release()
    back = open_ledger(place, BEFORE)
    assert len(back.notes[EARLIER]) == 2
    assert back.finished() == []
    back.release()


def test_what_was_not_accepted_is_refused_and_changes_nothing(place):
    begin(place)
    for accepts, plan in (((), AFTER), (("data",), FakePlan(identity={"space": "t", "data": "d2"}))):
        with pytest.raises(RunError, match=r"another search: it differs in its (data|space)"):
            open_ledger(place, plan, accepts)
    unchanged = open_ledger(place, BEFORE)
    assert EARLIER not in unchanged.notes
    assert not any(record.other_data for record in unchanged.records())
    unchanged.release()


def test_a_kill_before_the_identity_is_written_is_made_up_for(tmp_path, monkeypatch):
    place = f"sqlite:///{tmp_path}/study.db"
    figures = begin(place)

    def killed(self, name, value):
        if name == "identity":
            raise KeyboardInterrupt
        self.study.set_user_attr(name, value)

    with monkeypatch.context() as context:
        context.setattr("autoprune.study.store.TrialStore.note", killed)
        with pytest.raises(KeyboardInterrupt):
            open_ledger(place, AFTER)
    second = open_ledger(place, AFTER)
    assert second.notes["identity"]["data"] == "d2"
    assert {r.number for r in read_records(second._store._whole) if r.other_data} == set(figures)
    second.release()


def test_a_driver_that_is_refused_sets_nothing_aside(tmp_path, monkeypatch):
    """The first one still runs its trials on the data before."""
    place = f"sqlite:///{tmp_path}/study.db"
    first = open_ledger(place, BEFORE)
    candidate = first.ask()
    with monkeypatch.context() as context:
        context.setattr("autoprune.study.lease.os.getpid", lambda: 1)  # another process, which lives
        with pytest.raises(RunError, match="in use by another driver"):
            open_ledger(place, AFTER)
    first.report(candidate.number, 0, measure(candidate))
    assert EARLIER not in first.notes
    assert first.notes["identity"]["data"] == "d1"
    assert [(r.state, len(r.rungs), r.other_data) for r in first.records()] == [("running", 1, False)]
    first.release()
