"""A pruned detector of Transformers goes back into that library's trainer, and comes out pruned."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest
import torch

pytest.importorskip("transformers")

import transformers

import autoprune
from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.errors import ConfigError
from autoprune.export.pretrained import write_pretrained
from autoprune.graph import prune
from autoprune.policy import Policy
from autoprune.resize import Resize, resize_rule, resized
from autoprune.vendors.transformers_families import quiet

from ..vendors.transformers_models import halved, write_folder

FILES = {"config.json", "preprocessor_config.json", "model.safetensors", "policy.yaml"}


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Policy]:
    folder = tmp_path_factory.mktemp("dense")
    write_folder(folder, "rt_detr")
    dense, _, graph, policy = halved(folder, 64)
    return prune(dense, graph, policy.keep), policy


def outputs(detector: Any) -> dict[str, torch.Tensor]:
    image = torch.rand((3, 64, 64), generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        (detections,) = detector.eval()([image])
    result: dict[str, torch.Tensor] = detections
    return result


def test_a_folder_holds_the_vendors_files_and_the_policy(pruned: tuple[Any, Policy], tmp_path: Path) -> None:
    model, policy = pruned
    write_pretrained(tmp_path, model, policy)
    assert {path.name for path in tmp_path.iterdir()} == FILES
    loaded: Any = autoprune.load(tmp_path)
    assert all(torch.equal(outputs(loaded)[name], outputs(model)[name]) for name in outputs(model))
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["id2label"] == {"0": "RBC", "1": "WBC", "2": "Platelets"}
    with quiet():
        processor = transformers.AutoImageProcessor.from_pretrained(tmp_path)
        assert dict(processor.size)["height"] == 64
        assert transformers.AutoConfig.from_pretrained(tmp_path).num_labels == 3
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # and not fresh weights
            transformers.AutoModelForObjectDetection.from_pretrained(tmp_path)


def test_the_processor_has_the_input_size_of_the_policy(pruned: tuple[Any, Policy], tmp_path: Path) -> None:
    model, policy = pruned
    smaller = Resize(fixed=(32, 64))
    write_pretrained(tmp_path, resized(model, smaller), replace(policy, resize=smaller, input_size=(32, 64)))
    size = json.loads((tmp_path / "preprocessor_config.json").read_text())["size"]
    assert size == {"height": 32, "width": 64}


def test_detectors_of_others_are_refused(pruned: tuple[Any, Policy], tmp_path: Path) -> None:
    _, policy = pruned
    other = replace(policy, model=policy.model.model_copy(update={"name": "retinanet_resnet50_fpn"}))
    with pytest.raises(ConfigError, match="for detectors of transformers, and this is no such one; give"):
        write_pretrained(tmp_path, torch.nn.Identity(), other)


def test_the_vendors_trainer_goes_on_with_a_pruned_model(
    pruned: tuple[Any, Policy], demo_settings: dict[str, Any], tmp_path: Path
) -> None:
    pytest.importorskip("accelerate")
    model, policy = pruned
    start, out = tmp_path / "start", tmp_path / "trained"
    start.mkdir()
    write_pretrained(start, model, policy)
    detector: Any = autoprune.load(start)
    split = open_data(demo_settings["data"], "train", resize_rule(detector))
    items = []
    for number in range(4):
        (image,), (target,) = split.batch([number])
        batch, placed = detector.transform([image], [target])
        height, width = batch.image_sizes[0]
        boxes = placed[0]["boxes"]
        centers = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], dim=1)
        labels = {
            "class_labels": placed[0]["labels"].clamp(max=3) - 1,
            "boxes": centers / torch.tensor([width, height, width, height]),
        }
        items.append({"pixel_values": batch.tensors[0], "labels": labels})
    before = {name: tensor.clone() for name, tensor in detector.unwrap().state_dict().items()}
    with quiet():
        trainer = transformers.Trainer(
            model=detector.unwrap(),
            args=transformers.TrainingArguments(
                output_dir=str(out),
                max_steps=2,
                per_device_train_batch_size=2,
                learning_rate=1e-3,
                report_to=[],
                use_cpu=True,
                disable_tqdm=True,
                save_strategy="no",
                remove_unused_columns=False,
                dataloader_pin_memory=False,
            ),
            train_dataset=items,
            data_collator=lambda rows: {
                "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
                "labels": [row["labels"] for row in rows],
            },
        )
        trainer.train()
        trainer.save_model(str(out))
    tuned: Any = autoprune.load(start, weights=out)
    assert all(torch.equal(outputs(tuned)[name], outputs(detector)[name]) for name in ("boxes", "scores"))
    tuned = autoprune.load(start, weights=out / "model.safetensors")
    assert all(torch.equal(outputs(tuned)[name], outputs(detector)[name]) for name in ("boxes", "scores"))
    shutil.copy(start / "policy.yaml", out)
    after = detector.unwrap().state_dict()
    assert any(not torch.equal(before[name], after[name]) for name in before), "nothing was trained"
    assert {name: tensor.shape for name, tensor in after.items()} == {
        name: tensor.shape for name, tensor in before.items()
    }
    again: Any = autoprune.load(out)
    assert all(torch.equal(outputs(again)[name], outputs(detector)[name]) for name in ("boxes", "scores"))
    scores = [evaluate(each, split).map for each in (detector, again)]
    assert scores[0] == scores[1]


@pytest.mark.filterwarnings("ignore:.*pin_memory:UserWarning")  # of a machine without an accelerator
def test_the_documented_training_runs(
    pruned: tuple[Any, Policy], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("accelerate")
    page = (Path(__file__).parents[2] / "docs" / "vendors.md").read_text()
    (program,) = (each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "collate" in each)
    (tmp_path / "pruned").mkdir()
    write_pretrained(tmp_path / "pruned", *pruned)
    box = {"bbox": [10.0, 20.0, 30.0, 24.0], "area": 720.0, "category_id": 2, "iscrowd": 0}
    image = PIL.Image.fromarray(np.arange(64 * 80 * 3, dtype=np.uint8).reshape(64, 80, 3))
    names: dict[str, Any] = {"data": [(image, [box]), (image, [])]}
    monkeypatch.chdir(tmp_path)
    with quiet():
        exec(program, names)
    batch = names["collate"](names["data"])
    assert batch["labels"][0]["class_labels"].tolist() == [2]
    torch.testing.assert_close(
        batch["labels"][0]["boxes"], torch.tensor([[25 / 80, 32 / 64, 30 / 80, 24 / 64]])
    )
    trained, before = names["detector"], autoprune.load("pruned")
    assert not torch.equal(outputs(trained)["scores"], outputs(before)["scores"])
    own = names["trainer"].model.cpu()
    assert all(
        torch.equal(own.state_dict()[name], each) for name, each in trained.unwrap().state_dict().items()
    )
