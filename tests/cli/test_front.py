"""`front` on a finished run: the table, the lines below it, and the JSON agree with the files of the run."""

import io
import json
import shlex
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from rich.console import Console

from autoprune.cli.front import show_result
from autoprune.run.lock import locked
from autoprune.run.names import IMPORTANCE_FILE, LOCK_FILE
from autoprune.run.results import FrontPoint, SearchResult
from autoprune.study.records import Record

from .conftest import best_on_front, front_of, recovered_maps

Run = Callable[..., Any]


def rows_of(out: str) -> dict[int, str]:
    """The rows of the table by trial number."""
    rows = [line.strip() for line in out.splitlines() if line.strip().startswith("trial ") and "%)" in line]
    return {int(row.split()[1]): row for row in rows}


@pytest.mark.slow
def test_the_table_marks_the_front_and_has_the_recovered_map(autoprune: Run, run_copy: Path) -> None:
    outcome = autoprune("front", run_copy)
    assert outcome.code == 0, outcome.err
    rows, front = rows_of(outcome.out), front_of(run_copy)
    assert front.keys() <= rows.keys()
    for number, row in rows.items():
        assert ("●" in row) == (number in front)
        recovered = recovered_maps(run_copy).get(number)
        assert row.removesuffix("mean of 2").split()[-1] == (
            "-" if recovered is None else f"{100 * recovered:.1f}"
        )
    check = json.loads((run_copy / "proxies.json").read_text())
    best = best_on_front(run_copy)
    for text in (
        check["verdict"],
        f"autoprune report {run_copy}",
        f"autoprune recover {run_copy} --trial {best}",
    ):
        assert text in outcome.out
    with Image.open(run_copy / "front.png") as picture:
        assert picture.format == "PNG"


def test_all_lists_every_trial_and_says_which_were_evaluated_twice(autoprune: Run, run_copy: Path) -> None:
    trials = json.loads(autoprune("front", run_copy, "--json").out)["trials"]
    short, out = autoprune("front", run_copy).out, autoprune("front", run_copy, "--all").out
    shown = rows_of(out)
    hidden = len(trials) - len(rows_of(short))
    assert (
        f"{hidden} more trial{'s' * (hidden != 1)}: autoprune front {run_copy} --all" in short or not hidden
    )
    assert "more trial" not in out
    assert shown.keys() == {trial["trial"] for trial in trials}
    for trial in trials:
        assert ("mean of 2" in shown[trial["trial"]]) == (len(trial["measured_maps"]) == 2)
    assert "● on the front: " in out


def test_all_lists_trials_that_were_stopped_and_why_any_failed(tmp_path: Path) -> None:
    def record(number: int, state: Any, **more: Any) -> Record:
        metrics = {"map": 0.3, "gflops": 3.0, "mparams": 2.0}
        return Record(number, state, "sampler", 3.5, {}, (metrics,), **more)

    failed = [replace(record(n, "failed", reason=f"reason {n}"), rungs=()) for n in range(2, 7)]
    records = (record(0, "complete"), record(1, "stopped"), *failed)
    dense = {"map": 0.5, "gflops": 6.0, "mparams": 4.0}
    point = FrontPoint(0, "sampler", records[0].metrics, tmp_path / "policy.yaml")
    result = SearchResult(tmp_path, (point,), records, dense, {})
    shown = {}
    for every in (False, True):
        console = Console(record=True, width=100, file=io.StringIO())
        show_result(console, result, every)
        shown[every] = console.export_text()
    assert rows_of(shown[False]).keys() == {0}
    rows = rows_of(shown[True])
    assert rows.keys() == {0, 1}
    assert [rows[number].endswith("stopped at rung 0") for number in (0, 1)] == [False, True]
    reasons = [f"trial {number} failed: reason {number}" for number in range(2, 7)]
    assert [reason in shown[True] for reason in reasons] == [True] * 5
    assert "and 2 more (front --all lists all)" in shown[False]


def test_json_agrees_with_the_files(autoprune: Run, run_copy: Path) -> None:
    content = json.loads(autoprune("front", run_copy, "--json").out)
    front = front_of(run_copy)
    assert content["run"] == str(run_copy)
    assert {trial["trial"] for trial in content["trials"] if trial["on_front"]} == front.keys()
    for trial in content["trials"]:
        if trial["on_front"]:
            assert trial["metrics"]["map"] == pytest.approx(float(front[trial["trial"]]["map"]))
        assert trial["recovered_map"] == recovered_maps(run_copy).get(trial["trial"])
    assert not (run_copy / "front.png").exists()


def test_a_run_without_a_complete_trial_has_no_table(autoprune: Run, run_copy: Path) -> None:
    lines = (run_copy / "study.journal").read_text().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if '"rung_0"' in line)
    (run_copy / "study.journal").write_text("".join(lines[:first]))
    for name in ("policies", "recovered"):
        shutil.rmtree(run_copy / name)
    outcome = autoprune("front", run_copy)
    assert outcome.code == 0, outcome.err
    assert rows_of(outcome.out) == {}
    assert "0 complete" in outcome.out
    assert not (run_copy / "front.png").exists()


def test_a_trial_is_in_flight_only_while_a_driver_runs(autoprune: Run, run_copy: Path) -> None:
    journal = run_copy / "study.journal"
    lines = journal.read_text().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if '"rung_0"' in line)
    journal.write_text("".join(lines[:first]))  # as of a search that was killed in its first trial
    for name in ("policies", "recovered"):
        shutil.rmtree(run_copy / name)
    states = {}
    for driven in (True, False):
        with locked(run_copy, LOCK_FILE) if driven else nullcontext():
            (entry,) = json.loads(autoprune("front", run_copy, "--json").out)["trials"]
            states[entry["state"]] = autoprune("front", run_copy).out
    assert "1 trial: 0 complete, 0 stopped early, 0 failed, 1 in flight\n" in states["running"]
    assert "1 trial: 0 complete, 0 stopped early, 0 failed, 1 interrupted\n" in states["interrupted"]


def test_a_folder_that_is_no_run_is_refused(autoprune: Run, tmp_path: Path) -> None:
    assert autoprune("front", tmp_path).is_refusal(str(tmp_path), "not a run directory")
    assert not list(tmp_path.iterdir())


def test_the_next_commands_can_be_typed_whatever_the_path_holds(
    autoprune: Run, checked_run: Path, tmp_path: Path
) -> None:
    run = shutil.copytree(checked_run, tmp_path / "it's my [run]")
    lines = autoprune("front", run).out.splitlines()
    commands = [shlex.split(line.partition(": ")[2])[1:] for line in lines if ": autoprune " in line]
    assert [command[:2] for command in commands] == [["report", str(run)], ["recover", str(run)]]
    refused = autoprune("export", run, "--trial", "99", "--to", tmp_path / "x")
    assert refused.is_refusal(f"`autoprune recover {shlex.quote(str(run))} --trial 99`")


def test_a_search_that_was_stopped_before_its_first_trial_is_no_foreign_folder(
    autoprune: Run, tmp_path: Path
) -> None:
    (tmp_path / IMPORTANCE_FILE).touch()
    assert autoprune("front", tmp_path).is_refusal(str(tmp_path), "has no trials yet", "goes on")
