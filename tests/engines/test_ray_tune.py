"""Workers that fail, die or hang. One Ray is started for all of these; starting it takes seconds."""

import io
import re
import socket

import pytest
from rich.console import Console

from autoprune import progress
from autoprune.engines import dispatch, local
from autoprune.errors import RunError

from .conftest import RAY_WARNINGS, connected_engine, stopped_clock

pytestmark = [pytest.mark.slow, *RAY_WARNINGS]


@pytest.fixture(scope="module")
def engine():
    with connected_engine(cpus=2) as engine:
        yield engine


def test_a_worker_that_hangs_is_killed_and_its_trial_is_run_again(engine, make_ledger, evaluator, tmp_path):
    flag = tmp_path / "hung"

    class Hanging(evaluator):
        """Stops answering once, after some trials, as a frozen process does."""

        def evaluate(self, widths, rung, state, repeat=0, rivals=()):
            import os
            import signal

            if self.evaluations == 8 and not flag.exists():
                flag.touch()
                os.kill(os.getpid(), signal.SIGSTOP)
            return super().evaluate(widths, rung, state, repeat)

    def clock():
        """Nothing takes any time, but an hour passes when the worker hangs."""
        return 3600.0 if flag.exists() else 0.0

    ledger, said = make_ledger(trials=6), io.StringIO()
    with progress.show(Console(file=said, width=200)):
        engine.run(ledger, Hanging, lambda number: None, engine.Cluster(workers=1), clock=clock)
    assert len(ledger.finished()) == 6
    assert not any(record.state == "failed" for record in ledger.finished())
    assert [trial.user_attrs["losses"] for trial in ledger.study.trials if "losses" in trial.user_attrs] == [
        1
    ]
    assert re.search(
        r"lost its worker: no answer at rung \d for 3600 s \(the median is 0 s\)", said.getvalue()
    )


def test_a_worker_that_cannot_load_ends_the_search_and_names_its_node(engine, make_ledger):
    def load():
        from autoprune.errors import DataError

        raise DataError("no data at /data/coco")

    ledger = make_ledger()
    with pytest.raises(RunError, match=rf"on node {socket.gethostname()}: no data at /data/coco"):
        engine.run(ledger, load, lambda number: None, engine.Cluster(workers=1))
    assert ledger.finished() == []


def test_a_policy_that_takes_its_workers_down_fails_with_the_reason(
    engine, make_ledger, evaluator, monkeypatch
):
    monkeypatch.setattr("autoprune.study.ledger.MAX_LOSSES", 2)

    class Broken(evaluator):
        def evaluate(self, widths, rung, state, repeat=0, rivals=()):
            if widths["a"] == 50:  # the warm start's
                raise ZeroDivisionError("no such kernel")
            return super().evaluate(widths, rung, state, repeat)

    ledger = make_ledger(trials=3)
    engine.run(ledger, Broken, lambda number: None, engine.Cluster(workers=1), clock=stopped_clock)
    failed = [record for record in ledger.finished() if record.state == "failed"]
    assert [record.widths for record in failed] == [{"a": 50, "b": 50}]
    assert "2 workers were lost with it, at last: ZeroDivisionError: no such kernel" in failed[0].reason


def test_workers_that_die_before_they_begin_cost_no_trial_and_end_the_search(
    engine, make_ledger, evaluator, monkeypatch
):
    monkeypatch.setattr(dispatch, "MAX_FAILED_STARTS", 2)

    def load():
        raise OSError("the file system is gone")

    with pytest.raises(
        RunError, match=r"2 workers in a row died before they could begin: .*file system is gone"
    ):
        engine.run(make_ledger(trials=2), load, lambda number: None, engine.Cluster(workers=1))
    ledger = make_ledger(trials=2)
    assert ledger.finished() == []
    local.run(ledger, evaluator(), lambda number: None)
    assert [record.state for record in ledger.finished()] == ["complete", "complete"]
