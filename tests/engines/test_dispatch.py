"""What the Ray engine decides without Ray: what an answer and a lost worker mean."""

import errno
import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from autoprune import progress
from autoprune.engines import dispatch as module
from autoprune.engines.dispatch import Dispatch, cause_of
from autoprune.errors import RunError


@pytest.fixture
def make_dispatch(make_ledger):
    """A dispatch over a fresh ledger; `calls` holds the arguments of its callbacks."""

    def make(clock=lambda: 0.0, **settings):
        calls = SimpleNamespace(finished=[], changed=[])
        dispatch = Dispatch(
            make_ledger(**settings), calls.finished.append, lambda: calls.changed.append(None), clock
        )
        return dispatch, calls

    return make


@pytest.fixture
def said():
    """`said()` is what the user has been shown so far."""
    shown = io.StringIO()
    with progress.show(Console(file=shown, width=200)):
        yield shown.getvalue


def answer(rung, value=0.5):
    return {"rung": rung, "metrics": {"map": value, "gflops": 1.0}}


def test_answers_take_a_trial_through_the_rungs_to_its_end(make_dispatch):
    dispatch, calls = make_dispatch(trials=1)
    candidate = dispatch.ask("t0")
    assert dispatch.ask("t1") is None
    assert not dispatch.done  # the trial is in flight
    dispatch.begin("t0")
    assert dispatch.report("t0", answer(0))
    assert not dispatch.report("t0", answer(1))
    dispatch.finish("t0", lost=False)
    assert dispatch.done
    assert not dispatch.failed
    assert calls.finished == [candidate.number]
    assert len(calls.changed) == 3  # it began, and ended two rungs


def test_a_failed_trial_keeps_the_reason(make_dispatch):
    dispatch, _ = make_dispatch(trials=1)
    dispatch.ask("t0")
    dispatch.begin("t0")
    assert not dispatch.report("t0", {"reason": "the loss is not finite"})
    dispatch.finish("t0", lost=False)
    assert [r.reason for r in dispatch.ledger.finished()] == ["the loss is not finite"]


def test_a_lost_trial_is_asked_for_again_and_the_first_cause_is_said(make_dispatch, said):
    dispatch, calls = make_dispatch(trials=1)
    first = dispatch.ask("t0")
    dispatch.begin("t0")
    dispatch.record_cause("t0", "its node\nran low  on memory")
    dispatch.record_cause("t0", "its worker died")
    dispatch.finish("t0", lost=True)
    assert dispatch.ask("t1").widths == first.widths
    assert calls.finished == [0]
    assert "trial 0 lost its worker: its node ran low on memory" in said()


def test_workers_that_die_before_they_begin_end_the_search_and_cost_no_trial(make_dispatch):
    dispatch, _ = make_dispatch(trials=1)
    for trial in range(module.MAX_FAILED_STARTS):
        assert not dispatch.failed
        assert dispatch.ask(f"t{trial}") is not None
        dispatch.record_cause(f"t{trial}", "the file system is gone")
        dispatch.finish(f"t{trial}", lost=True)
    assert isinstance(dispatch.error, RunError)
    assert "5 workers in a row died before they could begin: the file system is gone" in str(dispatch.error)
    assert dispatch.ask("t9") is None
    assert dispatch.ledger.finished() == []


def test_a_worker_that_cannot_load_ends_the_search(make_dispatch):
    dispatch, _ = make_dispatch()
    dispatch.ask("t0")
    assert not dispatch.report("t0", {"broken": "no data at /data", "node": "n1"})
    assert str(dispatch.error) == "a worker can't begin on node n1: no data at /data"
    dispatch.finish("t0", lost=False)
    assert dispatch.done


def test_a_full_disk_of_the_driver_ends_the_search(make_dispatch, monkeypatch):
    dispatch, _ = make_dispatch()

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dispatch.ledger, "ask", full)
    assert dispatch.ask("t0") is None
    assert dispatch.failed
    assert isinstance(dispatch.error, OSError)


def test_an_overdue_trial_is_named_with_its_cause(make_dispatch, said):
    now = [0.0]
    dispatch, _ = make_dispatch(clock=lambda: now[0], trials=9)
    for trial in range(3):
        dispatch.ask(f"t{trial}")
        dispatch.begin(f"t{trial}")
        dispatch.report(f"t{trial}", answer(0))
        dispatch.report(f"t{trial}", answer(1))
        dispatch.finish(f"t{trial}", lost=False)
    dispatch.ask("hung")
    dispatch.begin("hung")
    now[0] = 61.0
    assert dispatch.overdue() == ["hung"]
    dispatch.finish("hung", lost=True)
    assert "no answer at rung 0 for 61 s (the median is 0 s)" in said()


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "Failure # 1\nTask was killed due to the node running low on memory.\nMemory …",
            "its node ran low on memory",
        ),
        ("The actor died because its node has died. Node Id: 12", "its node died"),
        ("The actor died unexpectedly before finishing this task.\n\tclass_name: X\n", "its worker died"),
        (
            "ray::X.train()\n  File …\nZeroDivisionError: no such kernel\n",
            "ZeroDivisionError: no such kernel",
        ),
        ("", "its worker died"),
    ],
)
def test_causes_are_told_in_a_few_words(text, cause):
    assert cause_of(text) == cause
