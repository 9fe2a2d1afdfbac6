"""`autoprune doctor` names what is there and fails with a remedy where something is not."""

import re
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from autoprune.cli import doctor

Run = Callable[..., Any]


@pytest.fixture(autouse=True)
def _no_ray_process(monkeypatch: pytest.MonkeyPatch) -> None:
    probes = tuple(probe for probe in doctor._PROBES if probe is not doctor._ray)
    monkeypatch.setattr(doctor, "_PROBES", probes)


def test_it_reports_versions_devices_and_disk(autoprune: Run, tmp_path: Path) -> None:
    outcome = autoprune("doctor", "--out", tmp_path / "runs" / "new")
    assert outcome.code == 0, outcome
    for fragment in (f"torch {version('torch')}", "cpu", "nms and roi_align work", "runs/new"):
        assert fragment in outcome.out
    assert not (tmp_path / "runs").exists()


def test_a_part_of_no_data_is_refused(autoprune: Run) -> None:
    assert autoprune("doctor", "--val-fraction", "0.2").is_refusal(
        "--val-fraction does nothing without --data"
    )


def test_a_full_disk_fails_with_a_remedy(
    autoprune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "LEAST_DISK_GIB", 1e9)
    outcome = autoprune("doctor", "--out", tmp_path)
    assert outcome.code == 1
    assert "FAIL" in outcome.out
    assert outcome.err.startswith("error: disk: free 1000000000 GiB, or choose another --out")


def test_a_missing_package_fails_with_its_install_command(
    autoprune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "PACKAGES", {"torch": "torch", "no-such-package": ""})
    outcome = autoprune("doctor")
    assert outcome.code == 1
    assert "pip install no-such-package" in outcome.err


@pytest.mark.parametrize("name", ["hotcoco", "scipy", "pycocotools", "torch"])
def test_a_library_that_is_installed_and_broken_fails_with_its_reason(
    name: str, autoprune: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, doctor.PACKAGES[name], None)  # as Python marks what can't be imported
    outcome = autoprune("doctor")
    assert outcome.code == 1
    assert f"{name} can't be imported: import of {doctor.PACKAGES[name]} halted" in " ".join(
        outcome.out.split()
    )
    assert f"pip install --force-reinstall {name}" in outcome.err
    assert ("--evaluator pycocotools" in outcome.err) == (name == "hotcoco")


def test_it_says_what_a_data_set_holds(autoprune: Run, tmp_path: Path, tiny_data: Path) -> None:
    outcome = autoprune("doctor", "--data", tiny_data, "--out", tmp_path)
    assert outcome.code == 0, outcome
    assert f"layout: COCO ({tiny_data}/annotations/instances_" in outcome.out
    assert re.search(r"train +\d+ +\d+ ", outcome.out)
    labels = "labels: 1 circle, 2 square, 3 triangle"
    assert re.search(rf"train .*\n{labels}", outcome.out, re.DOTALL)
    assert labels in (tmp_path / "doctor.html").read_text()
    assert f"wrote {tmp_path}/doctor.html" in outcome.out
    assert "nms and roi_align" not in outcome.out
    assert (tmp_path / "doctor.html").read_text().count("<figure>") == 3


def test_a_single_file_is_divided_by_what_it_names(autoprune: Run, tmp_path: Path, tiny_data: Path) -> None:
    file = tiny_data / "annotations/instances_train.json"
    outcome = autoprune("doctor", "--data", file, "--out", tmp_path)
    assert outcome.code == 0, outcome
    assert "no validation split; --val-fraction 0.2" in outcome.out
    outcome = autoprune("doctor", "--data", file, "--val-fraction", "0.3", "--out", tmp_path)
    assert re.search(r"val +\d+ +\d+ ", outcome.out), outcome
    assert autoprune("doctor", "--data", tmp_path / "lost", "--out", tmp_path).code == 2
