"""A driver's work on a run: however it ends, what is finished is written, and the same command resumes it."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import contextmanager
from pathlib import Path

import optuna
import pytest
from rich.console import Console

from autoprune import progress
from autoprune.data.evaluate import evaluate
from autoprune.errors import RunError, TrainingError
from autoprune.policy import Policy
from autoprune.run.results import load_result
from autoprune.search import session
from autoprune.search.pipeline import search
from autoprune.study.journal import Journal
from autoprune.task.evaluator import PolicyEvaluator

from .conftest import outcome

ROOT = Path(__file__).parents[2]

# Says when a rung of a trial was evaluated; after some of them it waits, so that a signal meets it there.
DRIVER = """
    import json, sys
    from autoprune.search.pipeline import search
    from autoprune.task.evaluator import PolicyEvaluator

    evaluate, rungs = PolicyEvaluator.evaluate, int(sys.argv[2])

    def counted(self, *arguments, **options):
        global rungs
        result = evaluate(self, *arguments, **options)
        rungs -= 1
        if rungs == 0:
            print("waiting", flush=True)
            sys.stdin.read()
        return result

    PolicyEvaluator.evaluate = counted
    search(json.loads(sys.argv[1]))
"""


@contextmanager
def waiting_driver(settings, rungs):
    """A search in a process of its own that waits after some rungs of its trials."""
    settings = {**settings, **{name: str(settings[name]) for name in ("data", "out", "space")}}
    command = [sys.executable, "-c", textwrap.dedent(DRIVER), json.dumps(settings), str(rungs)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, text=True, **pipes
    ) as process:
        try:
            if process.stdout.readline() != "waiting\n":
                pytest.fail(process.stderr.read())
            yield process
        finally:
            process.kill()


@pytest.mark.slow
def test_kill_9_in_the_middle_then_resume(finished_run, scored_settings, tmp_path):
    settings = {**scored_settings, "out": tmp_path / "run", "trials": 3}
    with waiting_driver(settings, rungs=3) as process:  # one trial is finished, the next on its way
        with pytest.raises(RunError, match=f"in use by another process .*pid {process.pid}"):
            search(settings)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    with (tmp_path / "run" / "study.journal").open("a") as journal:
        journal.write('{"op_code": 8, "worker_')  # a line that it did not get to finish
    resumed = search(settings)
    assert [entry[1:] for entry in outcome(resumed)] == [entry[1:] for entry in outcome(finished_run)[:3]]
    policies = [tuple(sorted(r.widths.items())) for r in resumed.records]
    assert len(set(policies)) == len(policies) == 3
    backend = optuna.storages.journal.JournalFileBackend(str(tmp_path / "run" / "study.journal"))
    study = optuna.load_study(study_name="autoprune", storage=optuna.storages.JournalStorage(backend))
    assert not study.get_trials(states=[optuna.trial.TrialState.RUNNING, optuna.trial.TrialState.WAITING])


def test_sigterm_writes_what_is_finished_and_the_same_command_resumes(
    finished_run, scored_settings, tmp_path, monkeypatch
):
    settings = {**scored_settings, "out": tmp_path / "run", "trials": 2}
    evaluate, rungs = PolicyEvaluator.evaluate, []

    def terminated(self, *arguments, **options):
        result = evaluate(self, *arguments, **options)
        rungs.append(result)
        if len(rungs) == 3:
            signal.raise_signal(signal.SIGTERM)
            pytest.fail("the signal was ignored")
        return result

    monkeypatch.setattr(PolicyEvaluator, "evaluate", terminated)
    with pytest.raises(KeyboardInterrupt):
        search(settings)
    monkeypatch.undo()
    assert [point.trial for point in load_result(tmp_path / "run").front] == [0]
    assert (tmp_path / "run" / "front.csv").read_text().count("\n") == 2
    resumed = outcome(search(settings))
    assert [entry[1:] for entry in resumed] == [entry[1:] for entry in outcome(finished_run)[:2]]


def test_the_front_is_written_as_it_was_measured(finished_run):
    with (finished_run.run / "front.csv").open() as file:
        rows = {int(row["trial"]): row for row in csv.DictReader(file)}
    records = {record.number: record for record in finished_run.records}
    assert list(rows) == sorted(rows, key=lambda trial: (records[trial].metrics["gflops"], trial))
    for trial, row in rows.items():
        record, policy = records[trial], Policy.load(finished_run.run / f"policies/trial-{trial:04d}.yaml")
        assert float(row["map"]) == policy.metrics["map"] == record.rungs[-1]["map"]
        assert float(row["gflops"]) == policy.metrics["gflops"] == record.rungs[-1]["gflops"]
        assert (row["origin"], float(row["budget_gflops"])) == (record.origin, record.budget)
        assert not [name for name in row if name.endswith("_s")], "times are not what a policy is"
        widths = {name: len(kept) for name, kept in policy.keep.items()}
        assert widths == {name: width for name, width in record.widths.items() if name in widths}


def test_the_dense_detector_is_measured_once(demo_settings, tmp_path, monkeypatch):
    measured = []

    def counted(*arguments, **options):
        measured.append(evaluate(*arguments, **options))
        return measured[-1]

    monkeypatch.setattr(session, "evaluate", counted)
    settings = {**demo_settings, "criterion": "l2", "rungs": (0,), "out": tmp_path / "run"}
    for trials in (1, 2):
        result = search({**settings, "trials": trials})
    assert [each.map for each in measured] == [result.dense["map"]]
    assert result.dense["map_error"] == measured[0].map_error


def test_a_trial_whose_loss_is_not_finite_fails_and_the_next_is_run(demo_settings, tmp_path, monkeypatch):
    recover = PolicyEvaluator._recover

    def nan_in_the_second_trial(self, task, model, keep, rung, *rest):
        calls.append(rung)
        if len(calls) == 3:
            raise TrainingError("the loss is not finite at step 1")
        return recover(self, task, model, keep, rung, *rest)

    calls: list[int] = []
    monkeypatch.setattr(PolicyEvaluator, "_recover", nan_in_the_second_trial)
    result = search({**demo_settings, "criterion": "l2", "out": tmp_path / "run", "trials": 3})
    assert [r.state for r in result.records] == ["complete", "failed", "complete"]
    assert [r.reason for r in result.failed] == ["the loss is not finite at step 1"]
    assert 1 not in [point.trial for point in result.front]


def test_if_all_trials_fail_the_search_says_so_and_stops(demo_settings, tmp_path, monkeypatch):
    def fail(*_):
        raise TrainingError("the loss is not finite at step 1")

    monkeypatch.setattr(session, "FAILURES_TO_STOP", 2)
    monkeypatch.setattr(PolicyEvaluator, "_recover", fail)
    with pytest.raises(
        TrainingError, match="every trial failed at rung 0, the first of them, trial 0: the loss"
    ):
        search({**demo_settings, "criterion": "l2", "out": tmp_path / "run", "trials": 50})
    assert len(load_result(tmp_path / "run").failed) == 2


def test_a_rung_that_none_passes_stops_the_search_with_the_first_reason(demo_settings, tmp_path, monkeypatch):
    recover = PolicyEvaluator._recover

    def fail_above(self, task, model, keep, rung, *rest):
        calls.append(rung)
        if rung == 1:
            raise TrainingError(f"out of memory, time {calls.count(1)}")
        return recover(self, task, model, keep, rung, *rest)

    calls: list[int] = []
    monkeypatch.setattr(session, "FAILURES_TO_STOP", 2)
    monkeypatch.setattr(PolicyEvaluator, "_recover", fail_above)
    with pytest.raises(
        TrainingError, match="failed at rung 1, the first of them, trial 0: out of memory, time 1"
    ):
        search({**demo_settings, "criterion": "l2", "out": tmp_path / "run", "trials": 50})
    assert calls == [0, 1] * 2


def test_a_full_disk_is_one_line(demo_settings, tmp_path, monkeypatch):
    def full(self, logs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Journal, "append_logs", full)
    with pytest.raises(RunError, match="the disk is full"):
        search({**demo_settings, "out": tmp_path / "run"})


def test_a_run_with_more_trials_than_asked_for_has_nothing_left_to_do(demo_settings, tmp_path):
    settings = {**demo_settings, "criterion": "l2", "rungs": (0,), "confirm": 0, "out": tmp_path / "run"}
    first = outcome(search({**settings, "trials": 2}))
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=500)):
        assert outcome(search({**settings, "trials": 1})) == first
    has = f"{settings['out']} has 2 finished trials already"
    assert f"{has}, and --trials (YAML: trials) asks for 1: nothing is left to do\n" in lines.getvalue()
    assert "warm starts" not in lines.getvalue()
    with progress.show(Console(file=lines, width=500)):
        search({**settings, "trials": 2})
    assert f"{has}: nothing is left to do\n" in lines.getvalue()
    # the study holds the settings of its trials, so a file that says others is refused
    file = settings["out"] / "config.yaml"
    file.write_text(file.read_text().replace("\ncriterion: l2\n", "\ncriterion: l1\n"))
    del settings["criterion"]
    with pytest.raises(RunError, match=r"says criterion 'l1', and the trials of the run are of .* 'l2'"):
        search({**settings, "trials": 3})
