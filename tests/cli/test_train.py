"""`train` writes weights that load and score what it says, and refuses before it trains."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.detectors import load_state
from autoprune.run.lock import locked
from autoprune.run.names import LOCK_FILE

Run = Callable[..., Any]


@pytest.fixture
def flags(tiny_model: list[str], tiny_data: Path, tmp_path: Path) -> list[object]:
    """Two steps on the tiny data; `--out` is `dense`."""
    return [
        *tiny_model,
        "--data",
        tiny_data,
        "--steps",
        "2",
        "--batch-size",
        "2",
        "--out",
        tmp_path / "dense",
    ]


def interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_the_weights_load_and_score_what_it_says(
    autoprune: Run,
    tiny_model: list[str],
    tiny_data: Path,
    flags: list[object],
    tmp_path: Path,
) -> None:
    out = tmp_path / "dense"
    outcome = autoprune("train", *flags)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "model.safetensors"]
    written = json.loads((out / "metrics.json").read_text())
    assert written["model"]["num_classes"] == 6
    checked = autoprune(
        *("eval", *tiny_model, "--data", tiny_data, "--weights", out / "model.safetensors", "--json")
    )
    assert json.loads(checked.out)["metrics"] == pytest.approx(written["val"]["metrics"], abs=1e-6)
    assert autoprune("train", *flags).is_refusal("already exists", "--out")
    # after so few steps the detector finds nothing, which a search refuses
    assert written["val"]["metrics"]["map"] == 0
    assert "next:" not in outcome.out
    assert "it finds no object of val" in outcome.out


def test_the_next_command_can_be_typed_as_it_is(
    autoprune: Run, demo_settings: dict[str, Any], tmp_path: Path
) -> None:
    model = ["--model", demo_settings["model"]]
    model += ["--model-arguments", json.dumps(demo_settings["model_arguments"])]
    flags = [
        "--weights",
        demo_settings["weights"],
        "--data",
        demo_settings["data"],
        "--learning-rate",
        "1e-6",
    ]
    flags += ["--steps", "1", "--batch-size", "2", "--device", "cpu", "--threads", "1"]
    outcome = autoprune("train", *model, *flags, "--out", tmp_path / "dense")
    assert outcome.code == 0, outcome.err
    command = outcome.next_command()
    assert command[0] == "search"
    quick = ["--criterion", "l2", "--no-curves", "--rungs", "0", "--trials", "1", "--reconstruct-images", "0"]
    searched = autoprune(*command, *quick, "--out", tmp_path / "run")
    assert searched.code == 0, searched.err


def test_an_interrupted_training_keeps_its_own_settings(
    autoprune: Run, flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the same command has to resume it where defaults are others than when it was begun."""

    own = ["--clip-norm", "10", "--learning-rate", "0.001", "--seed", "3"]
    assert autoprune("train", *flags, *own, "--out", tmp_path / "whole").code == 0
    with monkeypatch.context() as patch:
        patch.setattr("autoprune.data.evaluate.evaluate", interrupt)
        assert autoprune("train", *flags, *own).code == 130
    refused = autoprune("train", *flags, "--clip-norm", "1")
    assert refused.is_refusal("clip_norm was 10.0, now 1.0")
    assert "resum" not in refused.out
    outcome = autoprune("train", *flags)
    assert outcome.code == 0, outcome.err
    line = "dense keeps its own learning_rate 0.001, clip_norm 10.0, seed 3; for other settings, choose"
    assert line in outcome.out
    assert "2 of 2 steps done, resumes from" in outcome.out
    whole, resumed = (load_state(tmp_path / name / "model.safetensors") for name in ("whole", "dense"))
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())


def test_a_training_that_was_begun_with_a_larger_batch_is_resumed(
    autoprune: Run, flags: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Version 0.1.0 took any."""
    batch = ["--batch-size", "9"]
    with monkeypatch.context() as patch:
        patch.setattr("autoprune.task.checks.check_batch_size", lambda *_: None)
        patch.setattr("autoprune.data.evaluate.evaluate", interrupt)
        assert autoprune("train", *flags, *batch).code == 130
    assert autoprune("train", *flags, *batch).code == 0


def test_a_loss_that_is_not_finite_says_the_step(autoprune: Run, flags: list[object], tmp_path: Path) -> None:
    outcome = autoprune("train", *flags, "--steps", "20", "--learning-rate", "1e20")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert "not finite at step" in outcome.err
    assert not (tmp_path / "dense" / "model.safetensors").exists()


def test_too_few_classes_for_the_data_are_refused(
    autoprune: Run, flags: list[object], tmp_path: Path
) -> None:
    outcome = autoprune("train", *flags, "--num-classes", "5")
    assert outcome.is_refusal("num_classes", "5", "6", "--num-classes")
    assert not (tmp_path / "dense").exists()


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("config.yaml", "is the run directory of a search (it holds config.yaml)"),
        ("study.journal", "is the run directory of a search"),
        ("policy.yaml", "is the folder of a pruned detector"),
        ("annotations", "is a data set"),
        ("metrics.json", "metrics.json already exists"),
    ],
)
def test_a_folder_that_holds_something_else_is_refused(
    autoprune: Run, flags: list[object], tmp_path: Path, name: str, problem: str
) -> None:
    (tmp_path / "dense").mkdir()
    (tmp_path / "dense" / name).write_text("")
    assert autoprune("train", *flags).is_refusal(problem, "choose another --out")
    assert [path.name for path in (tmp_path / "dense").iterdir()] == [name]


def test_a_second_training_in_the_same_folder_is_refused(
    autoprune: Run, flags: list[object], tmp_path: Path
) -> None:
    with locked(tmp_path / "dense", LOCK_FILE):
        outcome = autoprune("train", *flags)
        assert outcome.is_refusal(f"{tmp_path / 'dense'} is in use by another process", f"pid {os.getpid()}")


def test_a_batch_of_more_images_than_there_are_is_refused(
    autoprune: Run, flags: list[object], tmp_path: Path
) -> None:
    outcome = autoprune("train", *flags, "--batch-size", "65536")
    assert outcome.is_refusal("batch_size: 65536 is more than the 8 training images", "--batch-size")
    assert not (tmp_path / "dense").exists()


def test_a_file_in_the_place_of_the_folder_is_refused_before_training(
    autoprune: Run, flags: list[object], tmp_path: Path
) -> None:
    (tmp_path / "dense").write_text("")
    assert autoprune("train", *flags).is_refusal("not a folder", "--out")


@pytest.mark.parametrize("split", ["train", "val"])
def test_data_without_boxes_is_refused_before_training(
    autoprune: Run, flags: list[object], tiny_data: Path, tmp_path: Path, split: str
) -> None:
    data = shutil.copytree(tiny_data, tmp_path / "data")
    file = data / f"annotations/instances_{split}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"annotations": []}))
    outcome = autoprune("train", *flags, "--data", data)
    assert outcome.is_refusal(f"{split} has no boxes in any of its", "--data")
    assert not (tmp_path / "dense").exists()
