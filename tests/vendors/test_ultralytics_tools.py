"""A pruned detector in Ultralytics' own tools: predict, val, export, train, and its file."""

import copy
import io

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import autoprune
from autoprune import progress
from autoprune.config import ModelSpec
from autoprune.detectors import detector_inputs
from autoprune.errors import ConfigError, ModelError
from autoprune.export import save_detector
from autoprune.export.formats import write_vendor
from autoprune.graph import analyze, prune
from autoprune.policy import Policy, hash_weights
from tests.vendors.ultralytics_models import as_tensor, make_lively, pictures

ultralytics = pytest.importorskip("ultralytics")
from autoprune.vendors import ultralytics as adapter  # noqa: E402

SIZE, CONF = 64, 0.005
NAMES = {1: "red", 2: "white", 3: "platelet"}


def make(kind="yolo11n"):
    return with_policy(kind)[0]


def with_policy(kind):
    """A pruned detector, and the policy that it was pruned by."""
    arguments = adapter.describe(f"{kind}.yaml", {"imgsz": SIZE, "conf": CONF}).arguments
    detector = make_lively(adapter.build(arguments, 4))
    graph = analyze(detector, detector_inputs((SIZE, SIZE)))
    keep = {
        name: tuple(sorted(group.units[: max(1, len(group.units) * 3 // 4)].ravel().tolist()))
        for name, group in graph.prunable.items()
    }
    policy = Policy(
        model=ModelSpec(name=f"ultralytics:{kind}.yaml", arguments=arguments, num_classes=4),
        weights_sha256=hash_weights(detector.state_dict()),
        criterion="l2",
        input_size=(SIZE, SIZE),
        widths={name: graph.groups[name].width for name in keep},
        keep=keep,
        labels=NAMES,
    )
    return prune(detector, graph, keep).eval(), policy


@pytest.fixture(scope="module")
def pruned():
    return make()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Four images with two boxes each, as Ultralytics reads them."""
    folder = tmp_path_factory.mktemp("cells")
    for kind in ("images", "labels"):
        (folder / kind).mkdir()
    for n, picture in enumerate(pictures(4)):
        Image.fromarray(picture).save(folder / "images" / f"{n}.png")
        (folder / "labels" / f"{n}.txt").write_text("0 0.5 0.5 0.3 0.4\n2 0.3 0.3 0.2 0.2\n")
    names = "".join(f"  {label - 1}: {name}\n" for label, name in NAMES.items())
    file = folder / "cells.yaml"
    file.write_text(f"path: {folder}\ntrain: images\nval: images\nnames:\n{names}")
    return file


def shapes(model):
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def settings(data, folder):
    return {
        "data": str(data), "imgsz": SIZE, "batch": 2, "workers": 0, "device": "cpu", "plots": False,
        "project": str(folder), "name": "run", "exist_ok": True, "verbose": False,
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["yolo11n", "yolov9t", "yolo11n-seg", "yolo11n-pose", "yolo11n-obb"])
def test_its_file_is_what_yolo_loads(kind, tmp_path, pruned):
    detector = pruned if kind == "yolo11n" else make(kind)
    path = tmp_path / "pruned.pt"
    adapter.save(detector, path, NAMES)
    loaded = ultralytics.YOLO(path)
    assert loaded.names == {0: "red", 1: "white", 2: "platelet"}
    assert loaded.overrides["imgsz"] == SIZE
    assert shapes(loaded.model) == shapes(detector.unwrap())
    image = pictures(1)[0]
    result = loaded.predict(image[..., ::-1].copy(), conf=CONF, verbose=False)[0]
    with torch.inference_mode():
        selected = detector([as_tensor(image)])[0]
    boxes = result.boxes if result.obb is None else result.obb
    scores = selected["scores"]
    if kind == "yolo11n-seg":  # its predictor drops detections whose mask is empty, which ours are without
        corners = selected["boxes"][:, None]
        scores = scores[(corners - boxes.xyxy).abs().amax(-1).amin(1) <= 0.5]
    count = min(len(boxes.conf), len(scores))
    assert max(len(boxes.conf), len(scores)) - 1 <= count > 10  # round-off at the threshold
    torch.testing.assert_close(boxes.conf[:count], scores[:count], rtol=0, atol=1e-3)
    with pytest.raises(ModelError, match="holds a pruned model given as dense"):
        adapter.describe(str(path), {})


def test_export_writes_it_and_compares(tmp_path, pruned):
    write_vendor(pruned, tmp_path, "ultralytics", NAMES, (SIZE, SIZE))
    assert ultralytics.YOLO(tmp_path / "model.pt").names[2] == "platelet"
    with pytest.raises(ConfigError, match="--format ultralytics is for detectors of ultralytics"):
        write_vendor(torch.nn.Linear(1, 1), tmp_path, "ultralytics", NAMES, (SIZE, SIZE))


def test_a_model_with_emptied_groups_has_no_file(tmp_path):
    described = adapter.describe("yolov8n.yaml", {"imgsz": SIZE})
    detector = adapter.build(described.arguments, 4).eval()
    graph = analyze(detector, detector_inputs((SIZE, SIZE)))
    (name,) = [name for name in graph.prunable if name.endswith("model.4.m.0.cv1.conv")]
    with pytest.raises(ModelError, match="empties whole groups"):
        adapter.save(prune(detector, graph, {name: []}), tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").exists()


def test_in_an_object_of_another_size_it_needs_its_own(pruned):
    """As the documentation says of a model without its file."""
    image, confidences = pictures(1)[0], []
    for own_size in (False, True):
        yolo = ultralytics.YOLO("yolo11n.yaml")
        yolo.model = copy.deepcopy(pruned.unwrap())
        if own_size:
            yolo.overrides["imgsz"] = pruned.imgsz
        result = yolo.predict(image[..., ::-1].copy(), conf=CONF, verbose=False)[0]
        confidences.append(result.boxes.conf)
        assert yolo.predictor.imgsz == [SIZE if own_size else 640] * 2
    with torch.inference_mode():
        scores = pruned([as_tensor(image)])[0]["scores"]
    torch.testing.assert_close(confidences[1], scores[: len(confidences[1])], rtol=0, atol=1e-3)


@pytest.mark.filterwarnings("ignore")  # its exporters warn of their own ways
def test_it_is_validated_and_exported_by_ultralytics(tmp_path, pruned, data):
    yolo = ultralytics.YOLO("yolo11n.yaml")
    yolo.model = copy.deepcopy(pruned.unwrap())
    metrics = yolo.val(**settings(data, tmp_path))
    assert 0 <= metrics.box.map <= 1
    for name, runtime in (("onnx", "onnxruntime"), ("openvino", "openvino")):
        pytest.importorskip(runtime)
        adapter.save(pruned, tmp_path / "pruned.pt")
        options = {"simplify": False} if name == "onnx" else {}  # that needs one more package
        exported = ultralytics.YOLO(tmp_path / "pruned.pt").export(format=name, imgsz=SIZE, **options)
        image = np.ascontiguousarray(np.array(Image.fromarray(pictures(1)[0]).resize((SIZE, SIZE))))
        first, second = (
            ultralytics.YOLO(path, task="detect")
            .predict(image, conf=CONF, imgsz=SIZE, verbose=False)[0]
            .boxes
            for path in (tmp_path / "pruned.pt", exported)
        )
        assert len(first) > 10
        rounded = name == "openvino"  # to bfloat16, where the CPU has it
        torch.testing.assert_close(first.conf, second.conf, rtol=0, atol=0.02 if rounded else 1e-5)
        if not rounded:
            torch.testing.assert_close(first.xyxy, second.xyxy, rtol=0, atol=0.01)


@pytest.mark.filterwarnings("ignore:.*get_trial_id:UserWarning")  # of Ray, which Ultralytics asks
@pytest.mark.parametrize("start", ["detector", "file"])
def test_training_goes_on_without_a_rebuilt_architecture(start, tmp_path, pruned, data):
    adapter.save(pruned, tmp_path / "pruned.pt", NAMES)
    if start == "file":
        yolo, trainer = ultralytics.YOLO(tmp_path / "pruned.pt"), adapter.trainer()
    else:
        yolo, trainer = ultralytics.YOLO("yolo11n.yaml"), adapter.trainer(pruned)
    before = copy.deepcopy(pruned.unwrap().state_dict())
    yolo.train(trainer=trainer, epochs=1, lr0=0.01, warmup_epochs=0, **settings(data, tmp_path))
    assert shapes(yolo.model) == shapes(pruned.unwrap())
    again = ultralytics.YOLO(tmp_path / "run" / "weights" / "last.pt")
    assert shapes(again.model) == shapes(pruned.unwrap())
    moved = [
        name
        for name, value in again.model.state_dict().items()
        if not torch.equal(value, before[name].float())
    ]
    assert any(name.endswith("conv.weight") for name in moved)
    assert all(torch.equal(value, before[name]) for name, value in pruned.unwrap().state_dict().items())
    trained = copy.deepcopy(pruned)  # as the documentation takes it back
    trained.vendor.load_state_dict(yolo.model.state_dict())
    assert any(not torch.equal(trained.vendor.state_dict()[name], before[name]) for name in moved)


@pytest.mark.filterwarnings("ignore:.*get_trial_id:UserWarning")
def test_what_its_trainer_wrote_goes_back_into_the_folder(tmp_path, data):
    """As the documentation has it: export, train on, and load the folder with the weights of the training."""
    pruned, policy = with_policy("yolo11n")
    save_detector(tmp_path / "pruned", pruned, policy)
    write_vendor(pruned, tmp_path / "pruned", "ultralytics", NAMES, (SIZE, SIZE))
    ultralytics.YOLO(tmp_path / "pruned" / "model.pt").train(
        trainer=adapter.trainer(), epochs=1, optimizer="AdamW", lr0=1e-4, warmup_epochs=0,
        **settings(data, tmp_path),
    )  # fmt: skip
    for name in ("best.pt", "last.pt"):
        file = tmp_path / "run" / "weights" / name
        tuned = autoprune.load(tmp_path / "pruned", weights=file)
        assert list(tuned.unwrap().names.values()) == list(NAMES.values())
        image = pictures(1)[0]
        theirs = ultralytics.YOLO(file).predict(image[..., ::-1].copy(), conf=CONF, verbose=False)[0].boxes
        with torch.inference_mode():
            ours, before = (detector([as_tensor(image)])[0] for detector in (tuned, pruned))
        count = min(len(theirs.conf), len(ours["scores"]))
        assert max(len(theirs.conf), len(ours["scores"])) - 1 <= count > 10  # round-off at the threshold
        torch.testing.assert_close(theirs.conf[:count], ours["scores"][:count], rtol=0, atol=1e-3)
        torch.testing.assert_close(theirs.xyxy[:count], ours["boxes"][:count], rtol=0, atol=0.5)
        assert not torch.equal(ours["scores"], before["scores"])
        write_vendor(tuned, tmp_path, "ultralytics", NAMES, (SIZE, SIZE))


def test_a_trainer_of_another_head_is_refused():
    """It would place RT-DETR's images otherwise, and suppress its boxes."""
    model = ultralytics.RTDETR("rtdetr-resnet50.yaml").model
    kind = adapter.trainer()
    trainer = object.__new__(kind)
    trainer.data = {"nc": 80}
    with pytest.raises(ModelError, match=r"RTDETRTrainer .* trains such a model, not DetectionTrainer"):
        trainer.get_model(weights=model)
    trainer = object.__new__(adapter.trainer(model))
    trainer.data = {"nc": 80}
    assert shapes(trainer.get_model(weights=model)) == shapes(model)


def test_a_head_that_ultralytics_does_not_choose_by_itself_is_said(tmp_path):
    out = io.StringIO()
    with progress.show(Console(file=out, width=200)):
        for kind, said in (("yolo11n", 0), ("yolo26n", 0), ("yolo26n", 1)):
            arguments = {"imgsz": SIZE, "nms": False} if said else {"imgsz": SIZE}
            detector = adapter.build(adapter.describe(f"{kind}.yaml", arguments).arguments, 4)
            adapter.save(detector, tmp_path / "model.pt")
            assert out.getvalue().count("give nms=False to predict") == said


def test_data_of_other_classes_is_refused(tmp_path, pruned, data):
    other = tmp_path / "two.yaml"
    other.write_text(data.read_text().replace("  2: platelet\n", "  2: platelet\n  3: more\n"))
    with pytest.raises(ModelError, match="detects 3 classes and the data has 4"):
        ultralytics.YOLO("yolo11n.yaml").train(
            trainer=adapter.trainer(pruned), epochs=1, **settings(other, tmp_path)
        )
    with pytest.raises(ModelError, match="there is no model to go on with"):
        ultralytics.YOLO("yolo11n.yaml").train(
            trainer=adapter.trainer(), epochs=1, **settings(data, tmp_path)
        )
    with pytest.raises(ModelError, match="is no model of Ultralytics"):
        adapter.trainer(torch.nn.Linear(1, 1))
