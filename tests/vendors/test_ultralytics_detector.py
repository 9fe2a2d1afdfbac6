"""Detections and losses against Ultralytics' own predictor and criterion."""

import copy
import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from autoprune.errors import ModelError
from autoprune.runtimes.decode_raw_heads import Detections
from autoprune.runtimes.onnx import write_raw_heads
from autoprune.runtimes.raw_heads import RawHeads, has_raw_heads
from autoprune.runtimes.sessions import open_session
from autoprune.runtimes.torch_export import write_program
from autoprune.vendors import DetectorTransform
from tests.vendors.raw_heads_checks import check_decoding, check_file, check_same, documented
from tests.vendors.ultralytics_models import as_tensor, make_lively, pictures

ultralytics = pytest.importorskip("ultralytics")
from autoprune.vendors import ultralytics as adapter  # noqa: E402

CLASSES = 3
KINDS = {
    "yolov8n": {},
    "yolov9t": {},
    "yolov10n": {},
    "yolo11n": {},
    "yolo12n": {},
    "yolo26n": {},
    "yolo26n without": {"nms": False},
    "rtdetr-l": {},
}


def make(kind, imgsz=96, **changes):
    arguments = {"imgsz": imgsz, "conf": 0.05, **KINDS.get(kind, {}), **changes}
    source = f"{kind.split()[0]}.yaml"
    torch.manual_seed(0)
    description = adapter.describe(source, arguments)
    return make_lively(adapter.build(description.arguments, CLASSES + 1))


def own_predictions(detector, images, **settings):
    """By `YOLO(…).predict`, image by image."""
    is_rtdetr = type(detector.head).__name__ == "RTDETRDecoder"
    wrapper = (ultralytics.RTDETR if is_rtdetr else ultralytics.YOLO)(detector.vendor.yaml["yaml_file"])
    wrapper.model = detector.unwrap()
    chosen = detector.selection
    settings = {"conf": chosen.conf, "iou": chosen.iou, "max_det": chosen.max_det, **settings}
    if not chosen.nms:
        settings["nms"] = False
    return [
        wrapper.predict(image[..., ::-1].copy(), imgsz=detector.imgsz, verbose=False, save=False, **settings)[
            0
        ]
        for image in images
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_the_detections_are_those_of_predict(kind):
    detector, images = make(kind), pictures(4 if kind == "rtdetr-l" else 16)
    with torch.inference_mode():
        ours = [detector([as_tensor(image)])[0] for image in images]
    theirs = own_predictions(detector, images)
    assert sum(len(each["scores"]) for each in ours) > 10 * len(images)
    assert len(np.unique(np.concatenate([each["labels"] for each in ours]))) > 1
    assert all(selected["scores"].diff().le(0).all() for selected in ours)
    boxes = [result.boxes.xyxy for result in theirs]
    compare(ours, boxes, [result.boxes for result in theirs], images)


def test_more_boxes_than_the_head_selects_by_itself():
    """300, which a higher `max_det` raises in Ultralytics' predictor, too."""
    detector, images = make("yolo26n without", imgsz=160, max_det=500, conf=0.0), pictures(1)
    with torch.inference_mode():
        ours = [detector([as_tensor(image)])[0] for image in images]
    theirs = own_predictions(detector, images)
    assert len(ours[0]["scores"]) == len(theirs[0].boxes) > 300


LEAST = 0.98
"""Part of the detections that are the same, at least: of boxes nearly suppressed, round-off decides."""


def agreement(ours, boxes, theirs, images):
    """The part of the detections that both have, within 0.5 pixels and 0.001 of the score."""
    matched = total = 0
    for selected, corners, expected, image in zip(ours, boxes, theirs, images, strict=True):
        corners = corners.clamp(min=0).minimum(torch.tensor([*image.shape[1::-1]] * 2))
        same = (
            ((selected["boxes"][:, None] - corners).abs().amax(-1) <= 0.5)
            & ((selected["scores"][:, None] - expected.conf).abs() <= 1e-3)
            & (selected["labels"][:, None] == expected.cls.long() + 1)
        )
        matched += min(int(same.any(0).sum()), int(same.any(1).sum()))
        total += max(same.shape)
    return matched / total


def compare(ours, boxes, theirs, images):
    assert agreement(ours, boxes, theirs, images) >= LEAST


@pytest.mark.parametrize("size", [64, 96, 160])
def test_images_are_placed_as_by_letterbox(size):
    from ultralytics.data.augment import LetterBox

    transform = make("yolov8n", imgsz=size).transform
    for image in pictures(4):
        batch, _ = transform([as_tensor(image)])
        expected = LetterBox(size, auto=True, stride=32)(image=image)
        assert torch.equal(
            (batch.tensors[0] * 255).round().byte(), torch.from_numpy(expected).permute(2, 0, 1)
        )


def batch_for(detector):
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 90, 96, generator=generator) for _ in range(3)]
    boxes = [
        torch.tensor([[10.0, 12, 60, 70], [30, 5, 90, 50]]),
        torch.zeros(0, 4),
        torch.tensor([[3.0, 3, 40, 88]]),
    ]
    labels = [torch.tensor([1, 3]), torch.zeros(0, dtype=torch.int64), torch.tensor([2])]
    targets = [{"boxes": b, "labels": n} for b, n in zip(boxes, labels, strict=True)]
    # By hand: 90x96 pixels lie in the middle of 96x96, 3 pixels down.
    own = {"img": torch.full((3, 3, 96, 96), 114 / 255), "batch_idx": torch.tensor([0.0, 0, 2])}
    for place, image in zip(own["img"], images, strict=True):
        place[:, 3:93] = image
    moved = torch.cat(boxes) + torch.tensor([0.0, 3, 0, 3])
    own["bboxes"] = (
        torch.stack(
            [
                (moved[:, 0] + moved[:, 2]) / 2,
                (moved[:, 1] + moved[:, 3]) / 2,
                moved[:, 2] - moved[:, 0],
                moved[:, 3] - moved[:, 1],
            ],
            1,
        )
        / 96
    )
    own["cls"] = torch.tensor([[0.0], [2], [1]])
    return images, targets, own


@pytest.mark.parametrize("kind", ["yolov8n", "yolov10n", "yolo11n", "yolo26n"])
def test_the_loss_is_that_of_ultralytics(kind):
    detector = make(kind).train()
    images, targets, own = batch_for(detector)
    reference = copy.deepcopy(detector.vendor)
    losses = detector(images, targets)
    parts, items = reference.loss(own)
    assert [*losses] == [*items]
    torch.testing.assert_close(sum(losses.values()), parts.sum() / 3, rtol=1e-5, atol=1e-5)
    sum(losses.values()).backward()
    parts.sum().backward()
    gradients = {n: p.grad for n, p in reference.named_parameters()}
    for name, parameter in detector.vendor.named_parameters():
        if gradients[name] is not None:
            torch.testing.assert_close(parameter.grad * 3, gradients[name], rtol=1e-3, atol=1e-3)


def test_the_loss_of_rtdetr_is_that_of_ultralytics():
    detector = make("rtdetr-l").train()
    images, targets, own = batch_for(detector)
    own["img"] = torch.stack([detector.transform([image])[0].tensors[0] for image in images])
    own["bboxes"] = own["bboxes"].clone()
    boxes = torch.cat([target["boxes"] for target in targets]) / torch.tensor([96.0, 90, 96, 90])
    own["bboxes"] = torch.cat([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], 1)
    reference = copy.deepcopy(detector.vendor)
    torch.manual_seed(3)
    (loss,) = detector(images, targets).values()
    torch.manual_seed(3)  # of the noisy queries
    torch.testing.assert_close(loss, reference.loss(own)[0], rtol=1e-5, atol=1e-5)


def test_losses_follow_an_evaluation_of_the_same_size():
    detector = make("rtdetr-l")
    images, targets, _ = batch_for(detector)
    with torch.inference_mode():
        detector(images)
    sum(detector.train()(images, targets).values()).backward()
    copied = pickle.loads(pickle.dumps(copy.deepcopy(detector))).eval()
    with torch.inference_mode():
        first, second = detector.eval()(images), copied(images)
    assert all(torch.equal(a["boxes"], b["boxes"]) for a, b in zip(first, second, strict=True))


def test_in_evaluation_only_one_of_two_heads_runs():
    detector = make("yolo26n")
    ran = []
    for name, module in detector.head.named_children():
        module.register_forward_hook(lambda *_, name=name: ran.append(name))
    for branch in (*detector.head.cv2, *detector.head.one2one_cv2):
        branch.register_forward_hook(lambda module, *_: ran.append(id(module)))
    with torch.inference_mode():
        detector([torch.rand(3, 96, 96)])
    assert {id(branch) for branch in detector.head.cv2} <= {*ran}
    assert not {id(branch) for branch in detector.head.one2one_cv2} & {*ran}
    assert detector.head.one2one_cv2 is not None, "it is there again"


@pytest.mark.parametrize("task", ["seg", "pose", "obb"])
def test_other_tasks_give_boxes_and_refuse_training(task):
    detector = make(f"yolo11n-{task}", imgsz=64)
    image = pictures(1)[0]
    with torch.inference_mode():
        selected = detector([as_tensor(image)])[0]
    result = own_predictions(detector, [image])[0]
    corners = result.boxes.xyxy if task != "obb" else result.obb.xyxyxyxy
    if task == "obb":
        corners = torch.cat([corners.amin(1), corners.amax(1)], 1)
    if task == "seg":  # its predictor drops detections whose mask is empty, which ours are without
        near = (selected["boxes"][:, None] - corners).abs().amax(-1).amin(1) <= 0.5
        selected = {name: values[near] for name, values in selected.items()}
    assert len(corners) > 10
    compare([selected], [corners], [result.boxes if task != "obb" else result.obb], [image])
    with pytest.raises(ModelError, match="can't be trained here"):
        detector.train()([as_tensor(image)], [{"boxes": torch.ones(1, 4), "labels": torch.ones(1).long()}])


def test_the_features_are_what_the_head_reads():
    detector = make("yolo11n", imgsz=64)
    read, seen = [], []
    modules = dict(detector.named_modules())
    handles = [
        modules[name].register_forward_hook(lambda module, inputs, output: seen.append(output))
        for name in detector.features
    ]
    handles.append(detector.head.register_forward_pre_hook(lambda module, inputs: read.extend(inputs[0])))
    with torch.inference_mode():
        detector([torch.rand(3, 64, 64)])
    assert [tensor.data_ptr() for tensor in read] == [tensor.data_ptr() for tensor in seen]
    assert all(tensor.dim() == 4 for tensor in seen)
    assert isinstance(detector.transform, DetectorTransform)


@pytest.mark.parametrize("kind", [*KINDS, "yolo11n-seg", "yolo11n-pose", "yolo26n-seg"])
def test_raw_heads_are_decoded_to_its_detections(kind):
    """In an input that its images do not fill; RT-DETR's are stretched to it."""
    detector = make(kind)
    raw = check_decoding(detector, [as_tensor(picture) for picture in pictures(3)], (96, 128))
    assert raw.frame.stretch == (kind == "rtdetr-l")
    assert (raw.frame.height, raw.frame.width) == (96, 96 if raw.frame.stretch else 128)


@pytest.mark.parametrize("kind", ["yolov8n", "yolo26n without"])
def test_files_of_raw_heads_compute_the_same(kind, tmp_path):
    raw, image = RawHeads(make(kind), (64, 96)), as_tensor(pictures(1)[0])
    write_raw_heads(raw, tmp_path / "raw.onnx")
    check_file(raw, open_session(tmp_path / "raw.onnx", "onnxruntime", "cpu", 1), image)
    write_program(raw, tmp_path / "raw.pt2")
    check_file(raw, open_session(tmp_path / "raw.pt2", "torch", "cpu", 1), image)


@torch.inference_mode()
def test_the_documented_program_finds_what_predict_does_in_raw_heads(tmp_path):
    detector = make("yolov8n", imgsz=128)
    adapter.save(detector, tmp_path / "model.pt")
    image = Image.fromarray(pictures(1)[0]).resize((400, 300))  # 128x96 in the network
    boxes, scores, labels = documented(detector, (96, 128), image, tmp_path)
    theirs = ultralytics.YOLO(tmp_path / "model.pt").predict(image, conf=0.05, verbose=False)[0].boxes
    expected = (theirs.xyxy.numpy(), theirs.conf.numpy(), theirs.cls.numpy() + 1)
    assert len(scores) > 10
    check_same(Detections(*expected), Detections(boxes, scores, labels), 0.02, 1e-4)


def test_raw_heads_of_oriented_boxes_are_refused():
    detector = make("yolo11n-obb", imgsz=64)
    assert not has_raw_heads(detector)
    with pytest.raises(
        ModelError, match=r"oriented boxes .*; export it whole with --format onnx, without --raw-heads"
    ):
        RawHeads(detector, (64, 64))
