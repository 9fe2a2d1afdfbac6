"""`autoprune demo` goes the whole way; here with a handful of images and steps, and no way to the network."""

import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autoprune.cli import demo
from autoprune.data import demo_detector
from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.detectors import detector_inputs, load_dense, load_state, resize_rule
from autoprune.export import load
from autoprune.latency import timing as latency
from autoprune.task.evaluator import Objective

Run = Callable[..., Any]

SMALL = {
    "trials": 2,
    "rungs": (0, 1),
    "confirm": 0,
    "importance_images": 2,
    "reconstruct_images": 0,
    "recalibration_images": 4,
    "steps": 2,
    "batch_size": 2,
}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(*_: object) -> None:
        raise OSError("the demo must not use the network")

    monkeypatch.setattr(socket.socket, "connect", offline)
    monkeypatch.setattr(demo, "SETTINGS", SMALL)
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 8)
    monkeypatch.setattr(demo, "TEST_IMAGES", 6)
    monkeypatch.setattr(demo_detector, "VAL_IMAGES", 6)
    monkeypatch.setattr(latency, "measure", partial(latency.measure, repeats=2, warmup=0))


def gflops(model: torch.nn.Module) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(*detector_inputs((128, 128)))
    return counter.get_total_flops() / 2e9


@pytest.mark.slow
def test_the_demo_ends_with_a_true_table_and_files_that_work(
    autoprune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "demo"
    outcome = autoprune("demo", "--out", out, "--threads", "1")
    assert outcome.code == 0, outcome.err
    for number in range(1, demo.STEPS + 1):
        assert f"{number}/{demo.STEPS} " in outcome.out

    dense, _ = load_dense(
        demo_detector.MODEL.name, demo_detector.MODEL.arguments, weights=demo_detector.WEIGHTS
    )
    searched = load(out / "detector")
    images = open_data(out / "data", "test", resize_rule(dense))
    table = {
        line.split()[0]: line
        for line in outcome.out.splitlines()
        if re.match(r" ?(dense|uniform|searched) ", line)
    }
    for name, model in (("dense", dense), ("searched", searched)):
        assert f" {100 * evaluate(model, images).map:.1f} " in table[name]
        assert f" {gflops(model):.3f} " in table[name]
    assert gflops(searched) <= 0.5 * gflops(dense)
    for path in (
        "detector/model.safetensors",
        "detector/policy.yaml",
        "space.yaml",
        "front.png",
        "report.html",
    ):
        assert str(out / path) in outcome.out
        assert (out / path).stat().st_size > 100

    # the same command again finds everything done
    monkeypatch.setattr(Objective, "evaluate", None)
    again = autoprune("demo", "--out", out, "--threads", "1")
    assert again.code == 0, again.err
    assert f" {gflops(searched):.3f} " in again.out
    assert autoprune("demo", "--out", out, "--seed", "1").is_refusal("another configuration", "--out")


def test_training_the_detector_makes_weights_of_its_own_once(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_detector, "TRAINING", {"steps": 1, "batch_size": 2})
    weights = demo._train(tmp_path, tiny_data)
    own, shipped = load_state(weights), load_state(demo_detector.WEIGHTS)
    assert own.keys() == shipped.keys()
    assert not torch.equal(own["backbone.body.conv1.weight"], shipped["backbone.body.conv1.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["dense.safetensors"]
    written = weights.stat().st_mtime_ns
    assert demo._train(tmp_path, tiny_data) == weights
    assert weights.stat().st_mtime_ns == written


def test_a_budget_that_can_not_be_met_is_refused(autoprune: Run, tmp_path: Path) -> None:
    outcome = autoprune("demo", "--out", tmp_path / "demo", "--budget-gflops", "0.01%")
    assert outcome.is_refusal("budget_gflops", "smallest")
