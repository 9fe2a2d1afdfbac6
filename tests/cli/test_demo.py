"""`autoprune demo` from start to end, with a handful of images and steps, and without network."""

import html
import json
import re
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from autoprune.cli import demo, demo_comparison
from autoprune.data import demo_detector
from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.data.shapes import make_shapes
from autoprune.detectors import build, detector_inputs, load_dense, load_state, resize_rule
from autoprune.export import load
from autoprune.latency import timing
from autoprune.recovery import recover_policy
from autoprune.run.directory import RunDirectory
from autoprune.search import plan
from autoprune.task.evaluator import PolicyEvaluator

Run = Callable[..., Any]

SMALL = {
    "trials": 6,
    "rungs": (0,),
    "confirm": 0,
    "importance_images": 2,
    "curves": False,
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
    monkeypatch.setattr(demo, "STEPS_AT_SIBLING", 3)
    monkeypatch.setattr(demo, "TRAIN_IMAGES", 8)
    monkeypatch.setattr(demo, "VAL_IMAGES", 4)
    monkeypatch.setattr(demo, "TEST_IMAGES", 4)
    monkeypatch.setattr("autoprune.importance.obs.CHUNK", 2)  # fewer eliminations
    monkeypatch.setattr(demo_comparison, "LATENCY_PASSES", 2)
    monkeypatch.setattr(recover_policy, "LATENCY_PASSES", 1)
    monkeypatch.setattr(timing, "measure", partial(timing.measure, warmup=0))


def gflops(model: torch.nn.Module) -> float:
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model.eval()(*detector_inputs((128, 128)))
    return counter.get_total_flops() / 2e9


def row(out: str, name: str) -> list[str]:
    """The cells of a row of the last table."""
    lines = [line.strip() for line in out.splitlines()]
    return re.split(r"\s{2,}", next(line for line in reversed(lines) if re.match(rf"{name}\s{{2,}}", line)))


def as_points(scores: Any) -> str:
    return f"{100 * scores.map:.1f}"


@pytest.mark.slow
def test_the_demo_ends_with_a_true_table_and_files_that_work(
    autoprune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compare, compared = demo_comparison.compare, []

    def recorded(*arguments: Any) -> Any:
        compared.append((arguments, compare(*arguments)))
        return compared[-1][1]

    monkeypatch.setattr(demo_comparison, "compare", recorded)
    out = tmp_path / "demo"
    outcome = autoprune("demo", "--out", out, "--threads", "1", "--budget-gflops", "50%,33%")
    assert outcome.code == 0, outcome.err
    ((measured, comparison),) = compared
    for number in range(1, demo.PARTS + 1):
        assert f"{number}/{demo.PARTS} " in outcome.out

    dense, _ = load_dense(
        demo_detector.MODEL.name, demo_detector.MODEL.arguments, weights=str(demo_detector.WEIGHTS)
    )
    sibling = build(demo_detector.SIBLING).eval()
    sibling.load_state_dict(load_state(demo_detector.SIBLING_WEIGHTS))
    images, val = (open_data(out / "data", split, resize_rule(dense)) for split in ("test", "val"))
    dense_gflops = gflops(dense)
    for name, model in (("dense", dense), ("smaller sibling", sibling)):
        _, untrained, trained, cost, *_ = row(outcome.out, name)
        assert untrained == "-"
        assert trained.split()[0] == as_points(evaluate(model, images))
        assert cost.split()[0] == f"{gflops(model):.3f}"

    trials = json.loads(autoprune("front", out, "--json").out)["trials"]
    kinds = {"uniform": "uniform", "sampler": "searched"}
    recovered = 0
    for fraction in (0.5, 0.33):
        at_budget = [
            trial
            for trial in trials
            if trial["budget_gflops"] == pytest.approx(fraction * dense_gflops) and trial["metrics"]
        ]
        best = max(at_budget, key=lambda trial: trial["metrics"]["map"])
        for kind in {kinds.get(trial["origin"], "one-shot") for trial in at_budget}:
            _, untrained, trained, cost, *_ = row(outcome.out, f"{fraction:.0%} {kind}")
            of_kind = [t for t in at_budget if kinds.get(t["origin"], "one-shot") == kind]
            trial = max(of_kind, key=lambda trial: trial["metrics"]["map"])
            name = f"trial-{trial['trial']:04d}"
            model = load(out / "untrained" / name)
            assert untrained.split()[0] == as_points(evaluate(model, images))
            assert cost.split()[0] == f"{gflops(model):.3f}"
            assert gflops(model) <= fraction * dense_gflops
            assert evaluate(model, val).map == pytest.approx(trial["metrics"]["map"], abs=1e-6)
            folder = out / "recovered" / name
            assert folder.exists() == (trial == best and fraction == 0.33)  # the sibling's is 0.34
            if folder.exists():
                recovered += 1
                assert json.loads((folder / "metrics.json").read_text())["settings"]["steps"] == 3
                assert trained.split()[0] == as_points(evaluate(load(folder), images))
            else:
                assert trained == "-"
        assert re.search(rf"^{fraction:.0%}: .*\.$", outcome.out, re.MULTILINE)
    assert recovered == 1
    assert "the smaller sibling at 0.201 GFLOPs" in outcome.out
    assert gflops(load(out / "detector")) <= 0.33 * dense_gflops
    for path in (
        "detector/model.safetensors",
        "detector/policy.yaml",
        "space.yaml",
        "front.png",
        "report.html",
    ):
        assert str(out / path) in outcome.out
        assert (out / path).stat().st_size > 100

    findings = re.findall(r"^(?:50%|33%): .*\.$", outcome.out, re.MULTILINE)
    assert len(findings) == 2
    assert all(html.escape(line, quote=False) in (out / "report.html").read_text() for line in findings)

    # the same command again finds everything done, and measures the same files
    def measured_again(*arguments: Any) -> Any:
        assert arguments == measured
        return comparison

    monkeypatch.setattr(PolicyEvaluator, "evaluate", None)
    monkeypatch.setattr(demo_comparison, "compare", measured_again)
    files = [
        file for name in ("untrained", "recovered") for file in (out / name).rglob("*") if file.is_file()
    ]
    written = [file.stat().st_mtime_ns for file in files]
    again = autoprune("demo", "--out", out, "--threads", "1", "--budget-gflops", "50%,33%")
    assert again.code == 0, again.err
    assert [file.stat().st_mtime_ns for file in files] == written
    for name in ("smaller sibling", "33% uniform"):
        assert row(again.out, name) == row(outcome.out, name)
    other = autoprune("demo", "--out", out, "--seed", "1", "--budget-gflops", "50%,33%")
    assert other.is_refusal("another configuration", "--out")


def test_another_demo_is_refused_before_its_data_is_replaced(autoprune: Run, tmp_path: Path) -> None:
    data = make_shapes(tmp_path / "data", seed=0, train=2, val=2, test=2, size=64)
    begun = demo._config(tmp_path, data, demo_detector.WEIGHTS, 0, "50%", None)
    RunDirectory(tmp_path).write_config(begun.model_copy(update={"clip_norm": 10.0}), {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = autoprune("demo", "--out", tmp_path)
    assert outcome.is_refusal("another configuration: budget_gflops was ['50%'], now ['50%', '33%', '12%'];")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("train", [True, False])
def test_a_demo_with_other_weights_is_refused_before_its_data_is_replaced(
    train: bool, autoprune: Run, tmp_path: Path
) -> None:
    data = make_shapes(tmp_path / "data", seed=0, train=2, val=2, test=2, size=64)
    weights = demo_detector.WEIGHTS if train else tmp_path / "dense.safetensors"
    RunDirectory(tmp_path).write_config(demo._config(tmp_path, data, weights, 0, demo.BUDGETS, None), {})
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    outcome = autoprune("demo", "--out", tmp_path, *(["--train"] if train else []))
    assert outcome.is_refusal("holds a demo that began with or without --train", "--out")
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_there_is_a_trial_for_every_warm_start_and_more_at_each_of_the_default_budgets() -> None:
    budgets = demo.BUDGETS.split(",")
    assert budgets == ["50%", "33%", "12%"]
    warm_starts = max(plan.MOST_WARM_STARTS, plan.LEAST_WARM_STARTS * len(budgets))
    assert warm_starts + 3 * len(budgets) <= demo.TRIALS


def test_training_the_detector_makes_weights_of_its_own_once(
    tiny_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(demo_detector, "TRAINING", {"steps": 1, "batch_size": 2})
    weights = demo._train(tmp_path, tiny_data)
    trained, shipped = load_state(weights), load_state(demo_detector.WEIGHTS)
    assert trained.keys() == shipped.keys()
    assert not torch.equal(trained["backbone.body.conv1.weight"], shipped["backbone.body.conv1.weight"])
    assert [path.name for path in tmp_path.iterdir()] == ["dense.safetensors"]
    written = weights.stat().st_mtime_ns
    assert demo._train(tmp_path, tiny_data) == weights
    assert weights.stat().st_mtime_ns == written


@pytest.mark.parametrize(
    ("budget", "fragments"),
    [("0.01%", ["budget_gflops", "smallest"]), (" , ", ["--budget-gflops names no budget"])],
)
def test_a_budget_that_can_not_be_met_is_refused(
    autoprune: Run, tmp_path: Path, budget: str, fragments: list[str]
) -> None:
    outcome = autoprune("demo", "--out", tmp_path / "demo", "--budget-gflops", budget)
    assert outcome.is_refusal(*fragments)
