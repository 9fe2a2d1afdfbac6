"""`eval`, `train`, `space` and `latency` on a tiny set, and every kind of bad input in one line."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.detectors import load_dense, load_state, resize_rule, save_state
from autoprune.importance import load
from autoprune.runtimes import extras
from autoprune.space.file import SpaceFile

from .conftest import TINY

Run = Callable[..., Any]
Editor = Callable[[Callable[[dict[str, Any]], object]], Path]


@pytest.fixture
def edited(tiny_data: Path, tmp_path: Path) -> Editor:
    """A copy of the data whose validation annotations were edited; images are linked."""

    def edit(change: Callable[[dict[str, Any]], object]) -> Path:
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


# what works


@pytest.mark.parametrize("split", ["val", "test"])
def test_eval_prints_what_evaluate_measures(
    autoprune: Run, tiny: list[str], tiny_data: Path, tiny_weights: Path, split: str
) -> None:
    found = json.loads(autoprune("eval", *tiny, "--split", split, "--json").out)
    model, _ = load_dense(TINY.name, TINY.arguments, weights=tiny_weights)
    expected = evaluate(model, open_data(tiny_data, split, resize_rule(model)))
    assert found == expected.to_dict()
    assert found["images"] == {"val": 6, "test": 4}[split]


def test_eval_shows_the_numbers_and_every_class(autoprune: Run, tiny: list[str]) -> None:
    outcome = autoprune("eval", *tiny)
    assert outcome.code == 0
    for word in ("map50", "map75", "mar_100", "circle", "ring", "6 images of val"):
        assert word in outcome.out


def test_train_writes_weights_that_load_and_score_what_it_says(
    autoprune: Run, tiny_model: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    out = tmp_path / "dense"
    flags = [*tiny_model, "--data", tiny_data, "--steps", "2", "--batch-size", "2", "--out", out]
    outcome = autoprune("train", *flags)
    assert outcome.code == 0, outcome.err
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "model.safetensors"]
    told = json.loads((out / "metrics.json").read_text())
    assert told["model"]["num_classes"] == 6
    checked = autoprune(
        *("eval", *tiny_model, "--data", tiny_data, "--weights", out / "model.safetensors", "--json")
    )
    assert json.loads(checked.out)["metrics"] == pytest.approx(told["val"]["metrics"], abs=1e-6)
    assert autoprune("train", *flags).is_refusal("already exists", "--out")

    # what it says to type next is typed as it stands
    told_next = next(line for line in outcome.out.splitlines() if line.startswith("next: autoprune "))
    command = shlex.split(told_next.removeprefix("next: autoprune "))
    assert autoprune(*command, "--to", tmp_path / "space.yaml").code == 0


def test_space_is_written_and_read_back_and_never_overwritten(
    autoprune: Run, tiny: list[str], tmp_path: Path
) -> None:
    file = tmp_path / "space.yaml"
    flags = ["space", *tiny, "--criterion", "l2", "--granularity", "stage", "--round-to", "4", "--to", file]
    outcome = autoprune(*flags)
    assert outcome.code == 0, outcome.err
    space = SpaceFile.load(file)
    assert (space.model, space.criterion, space.granularity, space.round_to) == (TINY.name, "l2", "stage", 4)
    before = file.read_text()
    assert autoprune(*flags).is_refusal(str(file), "--force")
    assert file.read_text() == before
    assert autoprune(*flags, "--force").code == 0


def test_latency_compares_detectors(autoprune: Run, tiny_model: list[str]) -> None:
    arguments = [*tiny_model[2:], "--input-size", "64x64", "--repeats", "2", "--warmup-passes", "0"]
    found = json.loads(autoprune("latency", TINY.name, "retinanet_resnet34_fpn", *arguments, "--json").out)
    assert "64x64" in found["label"]
    assert list(found["detectors"]) == [TINY.name, "retinanet_resnet34_fpn"]
    for stages in found["detectors"].values():
        assert list(stages) == ["preprocessing", "network", "postprocessing"]
        for entry in stages.values():
            assert 0 < entry["p10_ms"] <= entry["median_ms"] <= entry["p90_ms"]


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_latency_in_other_runtimes(autoprune: Run, tiny_model: list[str], runtime: str) -> None:
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    flags = [*tiny_model[2:], "--runtime", runtime, "--repeats", "1", "--size", "64x64", "--batch", "2"]
    outcome = autoprune("latency", TINY.name, *flags, "--threads", "1")
    assert outcome.code == 0, outcome.err
    assert all(part in outcome.out for part in (runtime, "1 thread,", "batch 2", "network", "100%"))


@pytest.mark.parametrize(
    ("flags", "fragments"),
    [
        ([TINY.name], ["given twice"]),
        (["--device", "cuda:99"], ["cuda:99", "--device"]),
        (["--runtime", "tensorrt"], ["--runtime", "openvino"]),
        (["--size", "64"], ["--size", "800x1344"]),
        (["--record"], ["--record", "folders"]),
    ],
)
def test_latency_refuses(autoprune: Run, flags: list[str], fragments: list[str]) -> None:
    assert autoprune("latency", TINY.name, *flags).is_refusal(*fragments)


def test_latency_names_the_extra_of_a_runtime(
    autoprune: Run, tiny_model: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> None:
        raise ImportError(f"No module named {name!r}")

    monkeypatch.setattr(extras, "import_module", missing)
    arguments = ["latency", TINY.name, *tiny_model[2:], "--size", "64x64"]
    assert autoprune(*arguments, "--runtime", "openvino").is_refusal("autoprune[")


# what is refused


def test_missing_data_and_weights_name_option_field_and_demo(
    autoprune: Run, tiny_model: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    nowhere = autoprune("eval", *tiny_model, "--data", tmp_path / "no", "--weights", "x.safetensors")
    assert nowhere.is_refusal("--data", "YAML: data", "autoprune demo")
    unweighted = autoprune("space", *tiny_model, "--data", tiny_data, "--to", tmp_path / "s.yaml")
    assert unweighted.is_refusal("--weights", "YAML: weights", "autoprune demo")
    assert not (tmp_path / "s.yaml").exists()


def test_json_that_is_not_coco(autoprune: Run, tiny: list[str], tiny_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    (folder / "annotations").mkdir(parents=True)
    (folder / "images").mkdir()
    (folder / "annotations" / "instances_val.json").write_text('{"boxes": []}')
    assert autoprune("eval", *tiny, "--data", folder).is_refusal("instances_val.json")
    (folder / "annotations" / "instances_val.json").write_text("{not json")
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
    autoprune: Run, tiny: list[str], edited: Editor, change: Callable[[dict[str, Any]], object], word: str
) -> None:
    folder = edited(change)
    outcome = autoprune("eval", *tiny, "--data", folder)
    assert outcome.code == 0, outcome.err
    assert "left out" in outcome.out
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


def test_files_that_are_no_weights(autoprune: Run, tiny: list[str], tmp_path: Path) -> None:
    file = tmp_path / "odd.pt"
    torch.save({"model": object}, file)  # needs a pickle that runs code
    assert autoprune("eval", *tiny, "--weights", file).is_refusal(str(file), "safetensors")


def test_a_device_that_is_not_there(autoprune: Run, tiny: list[str]) -> None:
    assert autoprune("eval", *tiny, "--device", "cuda:99").is_refusal("cuda:99", "autoprune doctor")


def test_a_loss_that_is_not_finite_says_the_step(
    autoprune: Run, tiny_model: list[str], tiny_data: Path, tmp_path: Path
) -> None:
    flags = [*tiny_model, "--data", tiny_data, "--steps", "20", "--batch-size", "2"]
    outcome = autoprune("train", *flags, "--learning-rate", "1e20", "--out", tmp_path / "dense")
    assert outcome.code == 1
    assert len(outcome.err.splitlines()) == 1
    assert "not finite at step" in outcome.err
    assert not (tmp_path / "dense" / "model.safetensors").exists()


def test_a_full_disk_leaves_nothing_half_written(
    autoprune: Run, tiny: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, *_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    outcome = autoprune("space", *tiny, "--criterion", "l2", "--to", tmp_path / "new" / "space.yaml")
    assert outcome.is_refusal("disk is full", "space.yaml")
    # the scores were whole before the disk was full: the same command will not compute them again
    scores = tmp_path / "new" / "space.importance.safetensors"
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [scores]
    assert load(scores, "l2")
