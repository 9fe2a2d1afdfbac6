"""`front` on a finished run: the table, the lines below it, and the JSON agree with the files of the run."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

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
        assert row.split()[-1] == ("-" if recovered is None else f"{100 * recovered:.1f}")
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


def test_all_lists_every_complete_trial(autoprune: Run, run_copy: Path) -> None:
    trials = json.loads(autoprune("front", run_copy, "--json").out)["trials"]
    complete = {trial["trial"] for trial in trials if trial["state"] == "complete"}
    shown = rows_of(autoprune("front", run_copy, "--all").out)
    assert shown.keys() == complete


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
    shutil.rmtree(run_copy / "policies")
    outcome = autoprune("front", run_copy)
    assert outcome.code == 0, outcome.err
    assert rows_of(outcome.out) == {}
    assert "0 complete" in outcome.out
    assert not (run_copy / "front.png").exists()


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
