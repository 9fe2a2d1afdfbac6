"""`search`, `front`, `recover`, `export`, `apply` on one run of a few trials, and what they refuse."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from autoprune.cli.main import main
from autoprune.detectors import detector_inputs, load_dense
from autoprune.errors import TrainingError
from autoprune.export import load
from autoprune.policy import Policy, hash_weights
from autoprune.task.evaluator import Objective

Run = Callable[..., Any]


@pytest.fixture(scope="module")
def settings(demo_settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The YAML file of a search that takes seconds."""
    file = tmp_path_factory.mktemp("settings") / "run.yaml"
    content = {**demo_settings, "data": str(demo_settings["data"]), "rungs": list(demo_settings["rungs"])}
    file.write_text(yaml.safe_dump(content))
    return file


@pytest.fixture(scope="module")
def run(settings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; its best policy is recovered."""
    out = tmp_path_factory.mktemp("runs") / "one"
    assert main(["search", "--config", str(settings), "--trials", "4", "--out", str(out)]) == 0
    assert main(["recover", str(out), "--steps", "2"]) == 0
    return out


def best_of(run: Path) -> int:
    rows = list(csv.DictReader((run / "front.csv").read_text().splitlines()))
    return int(max(rows, key=lambda row: float(row["map"]))["trial"])


def test_front_counts_marks_draws_and_says_what_to_type(autoprune: Run, run: Path) -> None:
    (run / "front.png").unlink(missing_ok=True)
    outcome = autoprune("front", run)
    assert outcome.code == 0, outcome.err
    told = json.loads(autoprune("front", run, "--json").out)
    states = [trial["state"] for trial in told["trials"]]
    assert f"4 trials: {states.count('complete')} complete, {states.count('stopped')} stopped" in outcome.out
    for row in csv.DictReader((run / "front.csv").read_text().splitlines()):
        line = next(
            line for line in outcome.out.splitlines() if line.strip().startswith(f"trial {row['trial']} ")
        )
        assert "●" in line
        assert f"{100 * float(row['map']):.1f}" in line
    warm_starts = [trial["origin"] for trial in told["trials"] if trial["origin"] != "sampler"]
    assert "uniform" in warm_starts
    for origin in ("dense", *warm_starts):
        assert origin in outcome.out
    assert f"autoprune recover {run} --trial {best_of(run)}" in outcome.out
    with Image.open(run / "front.png") as picture:
        assert picture.format == "PNG"


def test_recovered_map_stands_beside_the_proxy(autoprune: Run, run: Path) -> None:
    best = best_of(run)
    metrics = json.loads((run / f"recovered/trial-{best:04d}/metrics.json").read_text())
    told = json.loads(autoprune("front", run, "--json").out)
    recovered = {trial["trial"]: trial["recovered_map"] for trial in told["trials"]}
    assert recovered.pop(best) == metrics["metrics"]["map"]
    assert set(recovered.values()) == {None}


def test_the_same_command_again_runs_nothing(
    autoprune: Run, run: Path, settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(Objective, "evaluate", never)
    outcome = autoprune("search", "--config", settings, "--trials", "4", "--out", run)
    assert outcome.code == 0, outcome.err


def test_export_reads_back_and_evaluates_the_same(autoprune: Run, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "detector"
    outcome = autoprune("export", run, "--to", folder)
    assert outcome.code == 0, outcome.err
    assert "identical" in outcome.out
    recovered = run / f"recovered/trial-{best_of(run):04d}"
    inputs = detector_inputs((128, 128))
    first, second = load(recovered), load(folder)
    with torch.inference_mode():
        one, other = first(*inputs)[0], second(*inputs)[0]
    assert all(torch.equal(one[name], other[name]) for name in one)
    # the recovered folder knows the run's data; the exported one has to be told
    data = yaml.safe_load((run / "config.yaml").read_text())["data"]
    told = json.loads((recovered / "metrics.json").read_text())["metrics"]
    for arguments in ([recovered], [folder, "--data", data], ["--weights", folder, "--data", data]):
        found = autoprune("eval", *arguments, "--batch-size", "2", "--json")
        assert found.code == 0, found.err
        assert json.loads(found.out)["metrics"] == pytest.approx(told, abs=1e-6)
    assert autoprune("export", run, "--to", folder).is_refusal("already exists", "--to")


def test_export_to_onnx_compares_on_the_runs_own_data(autoprune: Run, run: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the extra `onnx` is not installed")
    folder = tmp_path / "detector"
    outcome = autoprune("export", run, "--to", folder, "--format", "onnx", "--raw-heads", "--threads", "1")
    assert outcome.code == 0, outcome.err
    assert "raw_heads.onnx" in outcome.out
    assert "mAP" in outcome.out
    assert {"policy.yaml", "model.safetensors", "raw_heads.onnx"} <= {path.name for path in folder.iterdir()}
    # the folder stands alone, so that images have to be named
    again = ["export", folder, "--to", tmp_path / "again", "--format", "onnx"]
    assert autoprune(*again).is_refusal("real images", "--data", "--images")
    (tmp_path / "empty").mkdir()
    assert autoprune(*again, "--images", tmp_path / "empty").is_refusal("no images in", "--images")
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        (["--raw-heads"], ["--raw-heads", "--format onnx"]),
        (["--format", "onnx", "--size", "64x64"], ["--size", "--raw-heads"]),
        (["--format", "onnx", "--raw-heads", "--size", "64"], ["--size", "800x1344"]),
        (["--format", "tflite"], ["--format", "onnx"]),
    ],
)
def test_formats_that_make_no_sense_are_refused(
    autoprune: Run, run: Path, tmp_path: Path, flags: list[str], fragments: list[str]
) -> None:
    assert autoprune("export", run, "--to", tmp_path / "x", *flags).is_refusal(*fragments)
    assert not (tmp_path / "x").exists()


def test_apply_prunes_the_dense_weights(
    autoprune: Run, run: Path, demo_settings: dict[str, Any], tmp_path: Path
) -> None:
    file = run / f"policies/trial-{best_of(run):04d}.yaml"
    weights = demo_settings["weights"]
    outcome = autoprune("apply", file, "--weights", weights, "--to", tmp_path / "pruned")
    assert outcome.code == 0, outcome.err
    model = load(tmp_path / "pruned")
    dense, _ = load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )
    expected = Policy.load(file).apply(dense)
    assert hash_weights(model.state_dict()) == hash_weights(expected.state_dict())
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(*detector_inputs((128, 128)))
    saved = Policy.load(tmp_path / "pruned" / "policy.yaml")
    assert saved.metrics["gflops"] == pytest.approx(counter.get_total_flops() / 2e9, abs=1e-9)
    assert "map" not in saved.metrics  # what the trial scored, these weights do not


def test_latency_takes_policies_and_folders(autoprune: Run, run: Path) -> None:
    best = f"trial-{best_of(run):04d}"
    arguments = [run / f"policies/{best}.yaml", run / f"recovered/{best}", "--repeats", "1", "--json"]
    assert len(json.loads(autoprune("latency", *arguments).out)["detectors"]) == 2


def test_recorded_latency_stands_in_the_card(autoprune: Run, run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "detector"
    assert autoprune("export", run, "--to", folder).code == 0
    card = folder / "MODEL_CARD.md"
    assert card.read_text().count("batch 1, 128x128") == 1  # what the recovery measured
    policy = run / f"policies/trial-{best_of(run):04d}.yaml"
    outcome = autoprune("latency", policy, folder, "--batch", "3", "--repeats", "2", "--record")
    assert outcome.code == 0, outcome.err
    assert "batch 3, 128x128" in card.read_text()
    (row,) = (row for row in json.loads((folder / "latency.json").read_text()) if "batch 3" in row["label"])
    assert row["dense_ms"] > 0


def test_a_failed_trial_does_not_stop_the_search_and_the_front_says_so(
    autoprune: Run, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Objective.evaluate
    calls: list[int] = []

    def evaluate(self: Objective, keep: Any, rung: int, state: Any, repeat: int = 0) -> Any:
        calls.append(rung)
        if len(calls) == 1:
            raise TrainingError("the loss is not finite at step 3 of 5")
        return whole(self, keep, rung, state, repeat)

    monkeypatch.setattr(Objective, "evaluate", evaluate)
    outcome = autoprune("search", "--config", settings, "--trials", "2", "--out", tmp_path / "run")
    assert outcome.code == 0, outcome.err
    assert "1 failed" in outcome.out
    assert "trial 0 failed: the loss is not finite at step 3 of 5" in autoprune("front", tmp_path / "run").out


# what is refused


def test_search_without_arguments_means_retinanet_on_coco_and_says_what_is_missing(
    autoprune: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    outcome = autoprune("search", "--budget-gflops", "50")
    assert outcome.is_refusal("data/coco", "--data", "YAML: data", "autoprune demo")
    (tmp_path / "data" / "coco").mkdir(parents=True)
    outcome = autoprune("search", "--budget-gflops", "50")
    assert outcome.is_refusal("retinanet_resnet50_fpn", "--weights", "YAML: weights", "autoprune demo")
    assert [path.name for path in tmp_path.rglob("*")] == ["data", "coco"]


@pytest.mark.parametrize(
    ("budget", "fragments"),
    [("0.001", ["smallest"]), ("900", ["dense detector has"]), ("lots", ["'lots'", "not a number"])],
)
def test_budgets_out_of_reach_are_refused_before_any_work(
    autoprune: Run, settings: Path, tmp_path: Path, budget: str, fragments: list[str]
) -> None:
    flags = ["--config", settings, "--criterion", "l2", "--budget-gflops", budget, "--out", tmp_path / "run"]
    assert autoprune("search", *flags).is_refusal("budget_gflops", *fragments)
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_configuration_is_refused_and_untouched(
    autoprune: Run, run: Path, settings: Path
) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    outcome = autoprune("search", "--config", settings, "--trials", "4", "--seed", "5", "--out", run)
    assert outcome.is_refusal("another configuration", "seed was 0, now 5", "--out")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_folder_that_is_no_run_is_refused(autoprune: Run, tmp_path: Path) -> None:
    for command in (["front", tmp_path], ["recover", tmp_path], ["export", tmp_path, "--to", tmp_path / "x"]):
        assert autoprune(*command).is_refusal(str(tmp_path), "not a run directory")
    assert not list(tmp_path.iterdir())


def test_trials_that_are_not_there_are_refused(autoprune: Run, run: Path, tmp_path: Path) -> None:
    assert autoprune("recover", run, "--trial", "99").is_refusal("99", "autoprune front")
    refused = autoprune("export", run, "--trial", "99", "--to", tmp_path / "x")
    assert refused.is_refusal("no recovered trial 99", f"autoprune recover {run} --trial 99")


def test_a_policy_for_another_model_is_refused(
    autoprune: Run, run: Path, tmp_path: Path, tiny_weights: Path
) -> None:
    file = run / f"policies/trial-{best_of(run):04d}.yaml"
    outcome = autoprune("apply", file, "--weights", tiny_weights, "--to", tmp_path / "x")
    assert outcome.is_refusal("keys differ")
    content = yaml.safe_load(file.read_text())
    content["groups"]["backbone.nowhere"] = {"width": 8, "keep": "0-3"}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(content))
    weights = yaml.safe_load((run / "config.yaml").read_text())["weights"]
    outcome = autoprune("apply", tmp_path / "other.yaml", "--weights", weights, "--to", tmp_path / "x")
    assert outcome.is_refusal("another model", "backbone.nowhere")
    assert autoprune("apply", file, "--to", tmp_path / "x").is_refusal("--weights")
    assert not (tmp_path / "x").exists()


def test_an_unknown_key_in_a_space_is_refused(
    autoprune: Run, run: Path, settings: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load((run / "space.yaml").read_text())
    content["groups"][0]["max_ration"] = 0.5
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(content))
    outcome = autoprune(
        "search", "--config", settings, "--space", tmp_path / "space.yaml", "--out", tmp_path / "run"
    )
    assert outcome.is_refusal("max_ration", "max_ratio", "space.yaml")
    assert not (tmp_path / "run").exists()
