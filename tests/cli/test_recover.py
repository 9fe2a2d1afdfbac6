"""`recover` trains what it is asked for, reads back what is finished, and says what it wrote."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.detectors import resize_rule
from autoprune.export import load

from .conftest import best_on_front, front_of, recovered_maps

Run = Callable[..., Any]


def test_the_best_trial_is_recovered_by_default(autoprune: Run, run_copy: Path, run_data: Path) -> None:
    best = best_on_front(run_copy)
    folder = run_copy / f"recovered/trial-{best:04d}"
    shutil.rmtree(folder)
    outcome = autoprune("recover", run_copy, "--steps", "1", "--learning-rate", "1e-5")
    assert outcome.code == 0, outcome.err
    content = json.loads((folder / "metrics.json").read_text())
    assert content["trial"] == best
    assert (content["settings"]["steps"], content["settings"]["learning_rate"]) == (1, 1e-5)
    detector = load(folder)
    measured = evaluate(detector, open_data(run_data, "val", resize_rule(detector)))
    assert content["metrics"]["map"] == pytest.approx(measured.map, abs=1e-6)
    row = next(line for line in outcome.out.splitlines() if re.match(rf"\s*trial {best} \(", line))
    assert f"{100 * measured.map:.1f}" in row
    assert f"wrote {folder}" in outcome.out
    assert f"next: autoprune export {folder} --to detector" in outcome.out


def test_trials_that_are_recovered_already_are_read_back_in_the_order_asked(
    autoprune: Run, run_copy: Path
) -> None:
    maps = recovered_maps(run_copy)
    first, second, *_ = sorted(maps, reverse=True)
    before = {path: path.stat().st_mtime_ns for path in (run_copy / "recovered").rglob("*")}
    outcome = autoprune("recover", run_copy, "--trial", first, "--trial", second)
    assert outcome.code == 0, outcome.err
    rows = [line.split() for line in outcome.out.splitlines() if re.match(r"\s*trial \d+ \(", line)]
    assert [int(row[1]) for row in rows] == [first, second]
    for trial, row in zip((first, second), rows, strict=True):
        assert f"{100 * maps[trial]:.1f}" in row
    assert {path: path.stat().st_mtime_ns for path in (run_copy / "recovered").rglob("*")} == before


@pytest.mark.parametrize("kept", ["trained", "untrained"])
def test_a_trial_that_training_did_not_help_is_marked(autoprune: Run, run_copy: Path, kept: str) -> None:
    trial = next(iter(recovered_maps(run_copy)))
    file = run_copy / f"recovered/trial-{trial:04d}/metrics.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "kept": kept}))
    outcome = autoprune("recover", run_copy, "--trial", trial)
    assert outcome.code == 0, outcome.err
    assert ("kept untrained" in " ".join(outcome.out.split())) is (kept == "untrained")


@pytest.mark.parametrize(("above", "said"), [(0.01, False), (0.05, True)])
def test_a_dense_detector_that_has_not_converged_is_said(
    autoprune: Run, run_copy: Path, above: float, said: bool
) -> None:
    trial, value = next(iter(recovered_maps(run_copy).items()))
    file = run_copy / f"recovered/trial-{trial:04d}/metrics.json"
    content = json.loads(file.read_text())
    content["dense"]["metrics"]["map"] = value - above
    file.write_text(json.dumps(content))
    outcome = autoprune("recover", run_copy, "--trial", trial)
    assert outcome.code == 0, outcome.err
    assert (f"the best is {100 * above:.1f} mAP above the dense" in " ".join(outcome.out.split())) is said


def test_a_recovery_that_does_not_say_its_trial_is_read_back(autoprune: Run, run_copy: Path) -> None:
    trial, value = next(iter(recovered_maps(run_copy).items()))
    file = run_copy / f"recovered/trial-{trial:04d}/metrics.json"
    content = json.loads(file.read_text())
    for name in ("trial", "origin", "dense"):
        del content[name]
    file.write_text(json.dumps(content))
    outcome = autoprune("recover", run_copy, "--trial", trial)
    assert outcome.code == 0, outcome.err
    (row,) = [line for line in outcome.out.splitlines() if re.match(rf"\s*trial {trial} \(", line)]
    assert f"{100 * value:.1f}" in row


def test_a_recovery_whose_weights_are_lost_is_done_again(autoprune: Run, run_copy: Path) -> None:
    trial, value = next(iter(recovered_maps(run_copy).items()))
    weights = run_copy / f"recovered/trial-{trial:04d}/model.safetensors"
    weights.unlink()
    outcome = autoprune("recover", run_copy, "--trial", trial)
    assert outcome.code == 0, outcome.err
    assert f"{weights} is missing; it is recovered again" in outcome.out
    load(weights.parent)
    assert recovered_maps(run_copy)[trial] == pytest.approx(value, abs=1e-6)


def test_other_settings_than_those_of_a_finished_recovery_are_refused(autoprune: Run, run_copy: Path) -> None:
    flags = ["--trial", best_on_front(run_copy), "--steps", "9"]
    assert autoprune("recover", run_copy, *flags).is_refusal("steps was 2, now 9", "delete the folder")


def test_a_trial_that_does_not_exist_is_refused(autoprune: Run, checked_run: Path) -> None:
    assert 99 not in front_of(checked_run)
    assert autoprune("recover", checked_run, "--trial", "99").is_refusal("99", "autoprune front")


def test_a_folder_that_is_no_run_is_refused(autoprune: Run, tmp_path: Path) -> None:
    assert autoprune("recover", tmp_path).is_refusal(str(tmp_path), "not a run directory")
    assert not list(tmp_path.iterdir())
