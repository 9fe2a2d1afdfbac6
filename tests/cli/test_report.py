"""`report` writes its page where asked, and the files that it is asked for beside it."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

Run = Callable[..., Any]


def test_the_page_and_the_files_beside_it(
    autoprune: Run, checked_run: Path, run_copy: Path, tmp_path: Path
) -> None:
    page = tmp_path / "pages" / "run.html"
    outcome = autoprune("report", checked_run, "--to", page, "--png", "--csv", "--no-images")
    assert outcome.code == 0, outcome.err
    files = {path.name: path for path in page.parent.iterdir()}
    assert files.keys() == {"run.html", "front.png", "trials.csv"}
    assert all(str(path) in outcome.out for path in files.values())
    with Image.open(files["front.png"]) as picture:
        assert picture.format == "PNG"
    rows = list(csv.DictReader(files["trials.csv"].read_text().splitlines()))
    trials = json.loads(autoprune("front", run_copy, "--json").out)["trials"]
    assert [int(row["trial"]) for row in rows] == [trial["trial"] for trial in trials]
    assert "data:image/jpeg" not in page.read_text()


def test_by_default_it_is_in_the_run_with_sample_images(autoprune: Run, run_copy: Path) -> None:
    outcome = autoprune("report", run_copy)
    assert outcome.out.strip() == f"page: {run_copy / 'report.html'}"
    assert "data:image/jpeg" in (run_copy / "report.html").read_text()
    assert not (run_copy / "trials.csv").exists()


def test_before_the_dense_detector_is_measured_there_is_no_picture(autoprune: Run, run_copy: Path) -> None:
    for name in ("study.journal", "front.csv"):
        (run_copy / name).unlink()
    for folder in ("policies", "recovered"):
        shutil.rmtree(run_copy / folder)
    outcome = autoprune("report", run_copy, "--png")
    assert outcome.code == 0, outcome.err
    assert "no front.png: the dense detector is not measured yet" in outcome.out
    assert not (run_copy / "front.png").exists()


def test_a_folder_that_is_no_run_is_refused(autoprune: Run, tmp_path: Path) -> None:
    assert autoprune("report", tmp_path).is_refusal(str(tmp_path), "not a run directory")
    assert not list(tmp_path.iterdir())
