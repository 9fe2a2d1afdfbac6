"""`search` runs a study, resumes it, and refuses before any work what can't be searched."""

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from autoprune.cli.search import estimate_lines, proxies_table
from autoprune.cli.terminal import output
from autoprune.config import make_config
from autoprune.errors import TrainingError
from autoprune.recovery.proxy_check import load_check
from autoprune.run.directory import RunDirectory
from autoprune.search.estimate import Estimate, Part
from autoprune.task.evaluator import PolicyEvaluator

from .conftest import best_on_front, front_of

Run = Callable[..., Any]


@pytest.fixture
def settings(demo_settings: dict[str, Any], tmp_path: Path) -> Path:
    """The YAML file of a search with weights' norms as importance, which takes no images."""
    file = tmp_path / "settings.yaml"
    content = {**demo_settings, "data": str(demo_settings["data"]), "rungs": [0], "criterion": "l2"}
    file.write_text(yaml.safe_dump(content))
    return file


def contents(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_the_same_command_again_runs_nothing(
    autoprune: Run, checked_run: Path, run_copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(PolicyEvaluator, "evaluate", never)
    outcome = autoprune("search", "--config", checked_run / "config.yaml", "--out", run_copy)
    assert outcome.code == 0, outcome.err
    assert front_of(run_copy) == front_of(checked_run)
    assert f"autoprune recover {run_copy} --trial {best_on_front(checked_run)}" in outcome.out
    check = load_check(checked_run)
    assert check is not None
    assert "Spearman" in outcome.out
    assert all(str(row.spearman) in outcome.out for row in check.agreements)


def test_a_failed_trial_does_not_stop_the_search_and_the_front_says_so(
    autoprune: Run, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def evaluate(self: PolicyEvaluator, widths: Any, rung: int, state: Any, *rest: Any) -> Any:
        calls.append(rung)
        if len(calls) == 1:
            raise TrainingError("the loss is not finite at step 3 of 5")
        return {"map": 0.625, "map50": 0.75, **self.task.costs(self.keep(widths))}, None

    monkeypatch.setattr(PolicyEvaluator, "evaluate", evaluate)
    run = tmp_path / "run"
    outcome = autoprune("search", "--config", settings, "--trials", "2", "--out", run)
    assert outcome.code == 0, outcome.err
    assert len(calls) == 2
    for printed in (outcome.out, autoprune("front", run).out):
        assert "2 trials: 1 complete, 0 stopped" in printed
        assert "1 failed" in printed
        assert "trial 0 failed: the loss is not finite at step 3 of 5" in printed
        assert "62.5" in printed
    assert front_of(run).keys() == {1}


def test_the_table_of_the_proxies_has_every_rung_and_score(
    checked_run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    check = load_check(checked_run)
    assert check is not None
    output().print(proxies_table(check))
    lines = [line.replace("│", " ").split() for line in capsys.readouterr().out.splitlines()]
    rows = [line for line in lines if line and line[0].isdigit()]
    expected = [[row.rung, row.steps, {"map": "mAP"}.get(row.score, row.score)] for row in check.agreements]
    assert [row[:3] for row in rows] == [[str(cell) for cell in row] for row in expected]


def test_without_arguments_it_means_retinanet_on_coco_and_says_what_is_missing(
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
    outcome = autoprune("search", "--config", settings, "--budget-gflops", budget, "--out", tmp_path / "run")
    assert outcome.is_refusal("budget_gflops", *fragments)
    assert not (tmp_path / "run").exists()


def test_too_few_classes_for_the_data_are_refused(autoprune: Run, settings: Path, tmp_path: Path) -> None:
    flags = ["--config", settings, "--num-classes", "5", "--out", tmp_path / "run"]
    words = ("6 classes with the background, not 5", "omit --num-classes")
    assert autoprune("search", *flags).is_refusal(*words)
    assert not (tmp_path / "run").exists()


def test_a_run_of_another_configuration_is_refused_and_untouched(autoprune: Run, run_copy: Path) -> None:
    before = contents(run_copy)
    flags = ["--config", run_copy / "config.yaml", "--seed", "5", "--out", run_copy]
    outcome = autoprune("search", *flags)
    assert outcome.is_refusal("another configuration", "seed was 0, now 5", "--out")
    assert contents(run_copy) == before


def test_options_that_do_nothing_in_the_run_are_refused(autoprune: Run, tmp_path: Path) -> None:
    RunDirectory(tmp_path).write_config(make_config(out=tmp_path, rungs=(0,), budget_latency_ms="60%"), {})
    outcome = autoprune("search", "--out", tmp_path, "--rung-keep", "0.5")
    assert outcome.is_refusal("--rung-keep does nothing with one rung")
    outcome = autoprune("search", "--out", tmp_path, "--latency-runtime", "onnxruntime")
    assert outcome.is_refusal("latency_runtime was 'torch', now 'onnxruntime'")


def test_an_unknown_key_in_a_space_is_refused(
    autoprune: Run, checked_run: Path, settings: Path, tmp_path: Path
) -> None:
    content = yaml.safe_load((checked_run / "space.yaml").read_text())
    content["groups"][0]["max_ration"] = 0.5
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(content))
    flags = ["--config", settings, "--space", tmp_path / "space.yaml", "--out", tmp_path / "run"]
    assert autoprune("search", *flags).is_refusal("max_ration", "max_ratio", "space.yaml")
    assert not (tmp_path / "run").exists()


def test_a_reconstruction_without_images_is_refused_and_its_remedy_works(
    autoprune: Run, settings: Path, demo_settings: dict[str, Any], tmp_path: Path
) -> None:
    data = shutil.copytree(demo_settings["data"], tmp_path / "data")
    file = data / "annotations/instances_train.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"images": content["images"][:1]}))
    content["images"] = content["images"][:1]
    kept = content["images"][0]["id"]
    content["annotations"] = [thing for thing in content["annotations"] if thing["image_id"] == kept]
    file.write_text(json.dumps(content))
    flags = ["--config", settings, "--data", data, "--trials", "1", "--out", tmp_path / "run"]
    outcome = autoprune("search", *flags, "--reconstruct-images", "32")
    assert outcome.is_refusal("reconstruct_images", "2 training images", "--reconstruct-images 0")
    assert not (tmp_path / "run").exists()
    assert autoprune("search", *flags, "--reconstruct-images", "0").code == 0
    assert autoprune("space", "--config", settings, "--data", data, "--to", tmp_path / "space.yaml").code == 0


def test_a_search_without_a_complete_trial_fails_and_again_when_it_is_resumed(
    autoprune: Run, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evaluate(*_: object, **__: object) -> None:
        raise TrainingError("the loss is not finite at step 3 of 5")

    monkeypatch.setattr(PolicyEvaluator, "evaluate", evaluate)
    for _ in range(2):
        outcome = autoprune("search", "--config", settings, "--trials", "2", "--out", tmp_path / "run")
        assert outcome.code == 1
        assert "all 2 trials failed" in outcome.err
        assert "not finite at step 3 of 5" in outcome.err


@pytest.mark.parametrize(
    ("sizes", "fragments"),
    [
        ("0.75", ["--input-sizes", "must hold 1.0"]),
        ("1.0,0.1", ["input_sizes: 0.1 of the 128 pixels", "below the stride, 32"]),
        ("1.0,0.8,0.7", ["0.7 of the 128 pixels", "96 pixels, as 0.8 is"]),
        ("1.0,x", ["--input-sizes", "'x'"]),
    ],
)
def test_input_sizes_that_cannot_be_are_refused_before_any_file(
    autoprune: Run, settings: Path, tmp_path: Path, sizes: str, fragments: list[str]
) -> None:
    to = tmp_path / "run"
    outcome = autoprune("search", "--config", settings, "--input-sizes", sizes, "--out", to)
    assert outcome.code == 2
    line = outcome.err.strip().splitlines()[-1]
    assert line.startswith("error: ")
    assert all(fragment in line for fragment in fragments), line
    assert not contents(to)


@pytest.fixture
def estimated(monkeypatch: pytest.MonkeyPatch) -> Estimate:
    """What a dry run finds out, without timing anything."""
    estimate = Estimate(
        parts=(
            Part("importance", "64 x 1 s", 64.0, "--importance-images"),
            Part("training", "", 3536.0, "--rungs", True),
        ),
        rungs=(24, 12),
        trials=24,
        finished=3,
        repeats=2,
        workers=1,
        device="cpu",
        devices=2.0,
        megabytes=1.25,
        measuring_s=9.0,
    )
    monkeypatch.setattr("autoprune.search.dry_run.dry_run", lambda config, accept_data_change: estimate)
    return estimate


def test_a_dry_run_says_what_the_search_costs(
    autoprune: Run, settings: Path, tmp_path: Path, estimated: Estimate
) -> None:
    outcome = autoprune("search", "--config", settings, "--out", tmp_path / "run", "--dry-run")
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    assert any(line.split() == ["training", "59", "min", "98%", "--rungs"] for line in lines)
    assert "24 trials (3 are finished), 2 re-evaluations: 24 reach rung 0, 12 reach rung 1" in lines
    assert "about 60 min on 1 worker, 2 core-hours, 1.2 MB of disk" in lines
    assert "98% of the work is training; --rungs lowers it" in lines
    assert not (tmp_path / "run").exists()


def test_a_dry_run_of_one_trial_has_no_plurals(estimated: Estimate) -> None:
    one = dataclasses.replace(estimated, trials=1, finished=1, repeats=1, rungs=(2, 1))
    line = estimate_lines(one)[0]
    assert line == "1 trial (1 is finished), 1 re-evaluation: 2 reach rung 0, 1 reaches rung 1"


def test_a_dry_run_says_that_nothing_would_be_searched(estimated: Estimate) -> None:
    line = "nothing is searched: all 24 trials are warm starts"
    assert line not in estimate_lines(estimated)
    assert line in estimate_lines(dataclasses.replace(estimated, unsearched=line))


def test_a_dry_run_as_json(autoprune: Run, settings: Path, tmp_path: Path, estimated: Estimate) -> None:
    outcome = autoprune("search", "--config", settings, "--out", tmp_path / "run", "--dry-run", "--json")
    content = json.loads(outcome.out)
    assert (content["wall_s"], content["device_hours"], content["rungs"]) == (3600, 2, [24, 12])
    assert [part["name"] for part in content["parts"]] == ["importance", "training"]
    refused = autoprune("search", "--config", settings, "--out", tmp_path / "run", "--json")
    assert refused.is_refusal("--json", "--dry-run")


def test_an_interrupted_dry_run_says_that_nothing_was_written(
    autoprune: Run, settings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt("3 of 9 trials are finished and kept in /tmp/autoprune-x")

    monkeypatch.setattr("autoprune.search.dry_run.dry_run", interrupted)
    outcome = autoprune("search", "--config", settings, "--out", tmp_path / "run", "--dry-run")
    assert (outcome.code, outcome.err) == (130, "interrupted: no run was written, for it is a dry run\n")
