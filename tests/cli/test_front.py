"""`front` on a finished run: the table, the lines below it, and the JSON agree with the files of the run."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

Run = Callable[..., Any]


@pytest.fixture
def run(checked_run: Path, tmp_path: Path) -> Path:
    """A copy of a run with four recovered trials and a proxy check; `front` writes a picture there."""
    return Path(shutil.copytree(checked_run, tmp_path / "run"))


def rows_of(out: str) -> dict[int, str]:
    """The rows of the table by trial number."""
    rows = [line.strip() for line in out.splitlines() if line.strip().startswith("trial ") and "%)" in line]
    return {int(row.split()[1]): row for row in rows}


def front_of(run: Path) -> dict[int, dict[str, str]]:
    return {int(row["trial"]): row for row in csv.DictReader((run / "front.csv").read_text().splitlines())}


@pytest.mark.slow
def test_the_table_marks_the_front_and_has_the_recovered_map(autoprune: Run, run: Path) -> None:
    outcome = autoprune("front", run)
    assert outcome.code == 0, outcome.err
    rows, front = rows_of(outcome.out), front_of(run)
    assert front.keys() <= rows.keys()
    for number, row in rows.items():
        assert ("●" in row) == (number in front)
        file = run / f"recovered/trial-{number:04d}/metrics.json"
        recovered = json.loads(file.read_text())["metrics"]["map"] if file.is_file() else None
        assert row.split()[-1] == ("-" if recovered is None else f"{100 * recovered:.1f}")
    check = json.loads((run / "proxies.json").read_text())
    best = max(front.values(), key=lambda row: float(row["map"]))["trial"]
    for text in (check["verdict"], f"autoprune report {run}", f"autoprune recover {run} --trial {best}"):
        assert text in outcome.out
    with Image.open(run / "front.png") as picture:
        assert picture.format == "PNG"


def test_all_lists_every_complete_trial(autoprune: Run, run: Path) -> None:
    trials = json.loads(autoprune("front", run, "--json").out)["trials"]
    complete = {trial["trial"] for trial in trials if trial["state"] == "complete"}
    shown = rows_of(autoprune("front", run, "--all").out)
    assert shown.keys() == complete


def test_json_agrees_with_the_files(autoprune: Run, run: Path) -> None:
    content = json.loads(autoprune("front", run, "--json").out)
    front = front_of(run)
    assert content["run"] == str(run)
    assert {trial["trial"] for trial in content["trials"] if trial["on_front"]} == front.keys()
    for trial in content["trials"]:
        if trial["on_front"]:
            assert trial["metrics"]["map"] == pytest.approx(float(front[trial["trial"]]["map"]))
        file = run / f"recovered/trial-{trial['trial']:04d}/metrics.json"
        expected = json.loads(file.read_text())["metrics"]["map"] if file.is_file() else None
        assert trial["recovered_map"] == expected
    assert not (run / "front.png").exists()


def test_a_run_without_a_complete_trial_has_no_table(autoprune: Run, run: Path) -> None:
    lines = (run / "study.journal").read_text().splitlines(keepends=True)
    first = next(index for index, line in enumerate(lines) if '"rung_0"' in line)
    (run / "study.journal").write_text("".join(lines[:first]))
    shutil.rmtree(run / "policies")
    outcome = autoprune("front", run)
    assert outcome.code == 0, outcome.err
    assert rows_of(outcome.out) == {}
    assert "0 complete" in outcome.out
    assert not (run / "front.png").exists()
