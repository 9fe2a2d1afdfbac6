"""`eval` prints what `evaluate` measures, for a name, a policy or a folder, and refuses what it can't use."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.detectors import load_dense, load_state, resize_rule, save_state
from autoprune.policy import Policy

from .conftest import TINY, best_on_front, best_recovered

Run = Callable[..., Any]
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def edited(tiny_data: Path, tmp_path: Path) -> Callable[[Change], Path]:
    """A copy of the data whose validation annotations were edited; images are linked."""

    def edit(change: Change) -> Path:
        folder = tmp_path / "edited"
        (folder / "annotations").mkdir(parents=True)
        (folder / "images").symlink_to(tiny_data / "images")
        for file in (tiny_data / "annotations").iterdir():
            content = json.loads(file.read_text())
            if file.name == "instances_val.json":
                change(content)
            (folder / "annotations" / file.name).write_text(json.dumps(content))
        return folder

    return edit


@pytest.mark.parametrize("split", ["val", "test"])
def test_the_json_is_what_evaluate_measures(
    autoprune: Run, tiny: list[str], tiny_data: Path, tiny_weights: Path, split: str
) -> None:
    printed = json.loads(autoprune("eval", *tiny, "--split", split, "--json").out)
    model, _ = load_dense(TINY.name, TINY.arguments, weights=tiny_weights)
    expected = evaluate(model, open_data(tiny_data, split, resize_rule(model)))
    assert printed == expected.to_dict()
    assert printed["images"] == {"val": 6, "test": 4}[split]


def test_the_table_has_the_numbers_and_every_class(autoprune: Run, tiny: list[str]) -> None:
    outcome = autoprune("eval", *tiny)
    assert outcome.code == 0
    for word in ("map50", "map75", "mar_100", "circle", "ring", "6 images of val"):
        assert word in outcome.out


def test_a_recovered_folder_is_measured_on_the_data_of_its_run(autoprune: Run, checked_run: Path) -> None:
    folder = best_recovered(checked_run)
    written = json.loads((folder / "metrics.json").read_text())["metrics"]
    for arguments in ([folder], ["--weights", folder]):
        outcome = autoprune("eval", *arguments, "--batch-size", "2", "--json")
        assert outcome.code == 0, outcome.err
        assert json.loads(outcome.out)["metrics"] == pytest.approx(written, abs=1e-6)


def test_a_policy_file_prunes_the_dense_weights(
    autoprune: Run, checked_run: Path, run_data: Path, demo_settings: dict[str, Any], tmp_path: Path
) -> None:
    file = checked_run / f"policies/trial-{best_on_front(checked_run):04d}.yaml"
    weights = demo_settings["weights"]
    outcome = autoprune("eval", file, "--weights", weights, "--data", run_data, "--json")
    assert outcome.code == 0, outcome.err
    dense, _ = load_dense(demo_settings["model"], demo_settings["model_arguments"], weights=weights)
    expected = evaluate(Policy.load(file).apply(dense), open_data(run_data, "val", resize_rule(dense)))
    content, policy = json.loads(outcome.out), yaml.safe_load(file.read_text())
    assert content["metrics"]["map"] == pytest.approx(expected.map, abs=1e-6)
    assert content["gflops"] == pytest.approx(policy["metrics"]["gflops"])
    edited = tmp_path / "edited.yaml"
    policy["metrics"]["gflops"] *= 2
    edited.write_text(yaml.safe_dump(policy))
    outcome = autoprune("eval", edited, "--weights", weights, "--data", run_data)
    assert f"{content['gflops']:.3f} GFLOPs" in outcome.out
    assert f"{edited} says gflops" in outcome.err


def test_missing_data_and_weights_name_option_field_and_demo(
    autoprune: Run, tiny_model: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    nowhere = autoprune("eval", *tiny_model, "--data", tmp_path / "no", "--weights", "x.safetensors")
    assert nowhere.is_refusal("--data", "YAML: data", "autoprune demo")
    unweighted = autoprune("eval", *tiny_model, "--data", tiny_data)
    assert unweighted.is_refusal("--weights", "YAML: weights", "autoprune demo")


def test_a_split_that_the_data_does_not_have(autoprune: Run, tiny: list[str]) -> None:
    assert autoprune("eval", *tiny, "--split", "dev").is_refusal("instances_dev.json")


def test_without_hotcoco_pycocotools_works_and_the_refusal_says_so(
    autoprune: Run, tiny: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = autoprune("eval", *tiny, "--json")
    monkeypatch.setitem(sys.modules, "hotcoco", None)  # as Python marks what can't be imported
    assert autoprune("eval", *tiny).is_refusal(
        "hotcoco can't be imported", "--force-reinstall hotcoco", "--evaluator pycocotools"
    )
    outcome = autoprune("eval", *tiny, "--json", "--evaluator", "pycocotools")
    assert outcome.code == 0, outcome.err
    numbers, expected = (json.loads(each.out)["metrics"] for each in (outcome, whole))
    assert numbers == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("content", ['{"boxes": []}', "{not json"])
def test_json_that_is_not_coco(autoprune: Run, tiny: list[str], tmp_path: Path, content: str) -> None:
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "annotations" / "instances_val.json").write_text(content)
    assert autoprune("eval", *tiny, "--data", folder).is_refusal("instances_val.json")


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (lambda content: content["annotations"][0].update(category_id=99), "99"),
        (lambda content: content["annotations"][0]["bbox"].__setitem__(2, 0), "area"),
        (lambda content: content["annotations"][0].update(image_id=12345), "12345"),
        (lambda content: content["images"][0].update(file_name="gone.jpg"), "gone.jpg"),
    ],
)
def test_unusable_annotations_are_counted_and_strict_refuses(
    autoprune: Run, tiny: list[str], edited: Callable[[Change], Path], change: Change, word: str
) -> None:
    folder = edited(change)
    outcome = autoprune("eval", *tiny, "--data", folder)
    assert outcome.code == 0, outcome.err
    assert "skipped" in outcome.out
    assert word in outcome.out
    assert autoprune("eval", *tiny, "--data", folder, "--strict").is_refusal(word, "--strict")


def test_weights_of_another_architecture_name_the_first_keys(
    autoprune: Run, tiny: list[str], tiny_weights: Path, tmp_path: Path
) -> None:
    state = load_state(tiny_weights)
    wrong = {f"{name}.other" if "layer1" in name else name: value for name, value in state.items()}
    save_state(wrong, tmp_path / "wrong.safetensors")
    outcome = autoprune("eval", *tiny, "--weights", tmp_path / "wrong.safetensors")
    assert outcome.is_refusal("keys differ", "layer1")
    assert outcome.err.count("is missing") == 5


def test_the_key_chooses_among_the_weights_of_a_checkpoint(
    autoprune: Run, tiny: list[str], tiny_weights: Path, tmp_path: Path
) -> None:
    state, file = load_state(tiny_weights), tmp_path / "both.ckpt"
    zeros = {name: torch.zeros_like(value) for name, value in state.items()}
    torch.save({"model": zeros, "model_ema": {f"module.{name}": state[name] for name in state}}, file)
    alone = autoprune("eval", *tiny, "--weights", tiny_weights, "--json")
    chosen = autoprune("eval", *tiny, "--weights", file, "--weights-key", "model_ema", "--json")
    assert json.loads(chosen.out)["metrics"] == json.loads(alone.out)["metrics"]
    outcome = autoprune("eval", *tiny, "--weights", file)
    assert "`model` is taken; --weights-key model_ema takes another" in outcome.out
    wrong = autoprune("eval", *tiny, "--weights", file, "--weights-key", "emma")
    assert wrong.is_refusal("`emma`", "model, model_ema", "YAML: weights_key")


def test_files_that_are_no_weights(autoprune: Run, tiny: list[str], tmp_path: Path) -> None:
    file = tmp_path / "odd.pt"
    torch.save({"model": object}, file)  # needs a pickle that runs code
    assert autoprune("eval", *tiny, "--weights", file).is_refusal(str(file), "safetensors")


def test_a_device_that_does_not_exist(autoprune: Run, tiny: list[str]) -> None:
    assert autoprune("eval", *tiny, "--device", "cuda:99").is_refusal("cuda:99", "autoprune doctor")


def test_another_number_of_classes_than_the_weights_have_is_refused(autoprune: Run, tiny: list[str]) -> None:
    refused = autoprune("eval", *tiny, "--num-classes", "3")
    assert refused.is_refusal("has 6 classes with the background, not 3; omit --num-classes")
