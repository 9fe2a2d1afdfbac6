"""Every code path of `scripts/bench/gpu.py`, which no GPU has run yet, on the CPU at a tiny size."""

import json
import runpy
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from autoprune.detectors.resnets import OWN, resnet_detector

SCRIPT = Path(__file__).parent.parent / "scripts/bench/gpu.py"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], str]:
    """Runs the script in this process, which has imported torch already; returns what it prints.

    On a RetinaNet of all of ResNet-34's blocks at half of their channels.
    """
    narrow = partial(resnet_detector, 34, "retinanet", base_width=32, fpn_channels=64)
    monkeypatch.setitem(OWN, "narrow", narrow)

    def run(out: Path) -> str:
        flags = ["--out", out, "--device", "cpu", "--model", "narrow", "--size", "64"]
        flags += ["--images", "4", "--batch", "2", "--steps", "2", "--passes", "1", "--batches", "1,2"]
        monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, flags)])
        monkeypatch.syspath_prepend(SCRIPT.parent)
        capsys.readouterr()
        runpy.run_path(str(SCRIPT), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.mark.slow
def test_each_part_runs_and_is_not_measured_twice(run: Callable[[Path], str], tmp_path: Path) -> None:
    out = tmp_path / "bench"
    printed = run(out)
    results = {file.stem: json.loads(file.read_text()) for file in out.glob("*.json")}
    rates = {*results["train"], *results["evaluate"]}
    assert rates == {"bare", "autoprune", "autoprune, teacher", "autoprune, bfloat16"}
    for part in ("train", "evaluate"):
        bare = results[part]["bare"]["images_per_s"]
        for row in results[part].values():
            assert row["of_bare"] == pytest.approx(row["images_per_s"] / bare)
    for batch in (1, 2):
        uniform, emptied = (results[f"latency-{batch}-{kind}"] for kind in ("uniform", "emptied"))
        for fraction in ("100%", "67%", "50%", "33%"):
            target = float(fraction[:-1]) / 100
            for rows in (uniform, emptied):
                assert target - 0.06 <= rows[fraction]["gflops"] <= target + 0.005
                assert rows[fraction]["ms"] > 0
        assert all(row["emptied"] == 0 for row in uniform.values())
        assert emptied["33%"]["emptied"] > emptied["67%"]["emptied"] > 0
    harness = results["harness"]
    total = harness["harness_s"] + harness["trial_s"]
    assert harness["fraction"] == pytest.approx(harness["harness_s"] / total)
    rows = sum(len(results[part]) for part in ("train", "evaluate"))
    assert sum("│" in line for line in printed.splitlines()) == rows + 2 * 2 * 4 + 1
    times = {file: file.stat().st_mtime_ns for file in out.glob("[a-r]*.json")}
    assert run(out) == printed
    assert {file: file.stat().st_mtime_ns for file in out.glob("[a-r]*.json")} == times
