"""Raw heads, decoded by `Frame.detections`, have the detections of the detector as torchvision runs it."""

import numpy as np
import pytest
import torch
from torch import nn
from torchvision.ops import batched_nms, box_convert

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ModelError
from autoprune.runtimes.raw_heads import RawHeads, detect_padded, has_raw_heads, only_input, resize_and_pad
from autoprune.vendors import DenseRule, DetectorTransform, VendorDetector


def noise(size, seed=1):
    return torch.rand(3, *size, generator=torch.Generator().manual_seed(seed))


def matched(detections, expected):
    """Fraction of the expected detections that are there, whatever the order of equal scores."""
    boxes, scores, labels = detections
    wanted = (expected["boxes"].numpy(), expected["scores"].numpy(), expected["labels"].numpy())
    assert len(wanted[1]) > 5
    assert len(wanted[1]) == len(scores)
    hits = 0
    for box, score, label in zip(*wanted, strict=True):
        near = (np.abs(boxes - box).max(1) < 0.01) & (np.abs(scores - score) < 1e-4) & (labels == label)
        hits += bool(near.any())
    return hits / len(wanted[1])


def test_detections_are_those_of_the_detector(one_stage):
    raw = RawHeads(one_stage, (128, 128))
    frame = raw.frame
    image = noise((frame.height, frame.width))
    with torch.inference_mode():
        boxes, scores = raw(image[None])
        (expected,) = one_stage([image])
    detections = frame.detections(boxes[0].numpy(), scores[0].numpy(), (frame.height, frame.width))
    assert matched(detections, expected) > 0.99
    assert boxes.shape[:2] == scores.shape[:2] == (1, sum(frame.levels))


def test_a_smaller_image_is_decoded_as_torchvision_decodes_a_padded_one(one_stage):
    raw = RawHeads(one_stage, (90, 120))
    frame = raw.frame
    size = (frame.height - 20, frame.width - 30)
    padded = torch.from_numpy(frame.pad(noise(size).numpy()))
    with torch.inference_mode():
        boxes, scores = raw(padded)
    detections = frame.detections(boxes[0].numpy(), scores[0].numpy(), size)
    transform = one_stage.transform
    assert matched(detections, detect_padded(one_stage, padded, size)) > 0.99
    assert one_stage.transform is transform


def test_images_of_a_batch_are_independent(one_stage):
    raw = RawHeads(one_stage, (64, 96))
    pair = torch.stack([noise((raw.frame.height, raw.frame.width), seed) for seed in (1, 2)])
    with torch.inference_mode():
        together, alone = raw(pair), raw(pair[1:])
    for both, one in zip(together, alone, strict=True):
        assert (both[1] - one[0]).abs().max() < 1e-5 * one.abs().max()


def test_the_input_size_is_rounded_up_to_the_padding():
    spec = ModelSpec(name="fcos_resnet18_fpn", arguments={"fpn_channels": 32}, num_classes=2)
    frame = RawHeads(build(spec).eval(), (65, 96)).frame
    assert (frame.height, frame.width) == (96, 96)


def test_a_fixed_size_that_is_padded_is_refused():
    """Anchors are laid out over the padded image."""
    for size, fine in (([96, 64], True), ([100, 64], False)):
        arguments = {"fixed_size": size, "fpn_channels": 8}
        detector = build(ModelSpec(name="retinanet_resnet18_fpn", arguments=arguments, num_classes=3)).eval()
        assert has_raw_heads(detector) == fine
        if fine:
            assert RawHeads(detector, (64, 64)).frame.width == 96
            continue
        with pytest.raises(ModelError, match=r"fixed size of 64x100 pixels.*fixed_size such as \[128, 64\]"):
            RawHeads(detector, (64, 64))


def test_a_detector_of_two_stages_is_refused():
    spec = ModelSpec(name="fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=2)
    detector = build(spec).eval()
    assert not has_raw_heads(detector)
    with pytest.raises(
        ModelError,
        match=r"one-stage detector .* FasterRCNN; export it whole with --format onnx, without --raw-heads",
    ):
        RawHeads(detector, (64, 64))


STRIDE, CLASSES = 16, 3


class Cells(VendorDetector):
    """Another library's detector: a box and the scores of classes for each cell, selected in its own way."""

    def __init__(self, transform, rule):
        layer = nn.Conv2d(3, 4 + CLASSES, STRIDE, STRIDE)
        generator = torch.Generator().manual_seed(0)
        layer.weight.data.normal_(generator=generator).mul_(0.2)
        super().__init__(layer, transform)
        self.rule = rule

    def raw(self, batch):
        return self.vendor(batch.tensors)

    def dense_rule(self, size):
        return self.rule

    def dense(self, raw, batch):
        rows = raw.flatten(2).transpose(1, 2)
        cells = torch.arange(rows.shape[1])
        columns = raw.shape[-1]
        places = torch.stack([cells % columns, torch.div(cells, columns, rounding_mode="floor")], 1)
        centers = (places + rows[..., :2].tanh() + 0.5) * STRIDE
        boxes = torch.cat([centers, 40 * rows[..., 2:4].sigmoid()], -1)
        return box_convert(boxes, "cxcywh", "xyxy"), rows[..., 4:].sigmoid()

    def detections(self, raw, batch):
        """By the operators of torchvision, from the rule."""
        results = []
        whole = tuple(batch.tensors.shape[-2:])
        for boxes, scores, size in zip(*self.dense(raw, batch), batch.image_sizes, strict=True):
            top, left = self.transform.offset(size, whole)
            low, high = torch.tensor([left, top] * 2), torch.tensor([left + size[1], top + size[0]] * 2)
            if self.rule.best_class:
                values, labels = scores.max(1)
                cells = torch.arange(len(boxes))
            else:
                cells, labels = (scores == scores).nonzero(as_tuple=True)
                values = scores[cells, labels]
            order = values.argsort(descending=True)[: self.rule.most_candidates or len(boxes)]
            order = order[values[order] > self.rule.score_threshold]
            boxes, values, labels = boxes[cells[order]], values[order], labels[order]
            inside = boxes.maximum(low).minimum(high)
            boxes = boxes if self.rule.clip_last else inside
            if self.rule.drop_empty:
                good = (inside[:, 2:] > inside[:, :2]).all(1)
                boxes, values, labels = boxes[good], values[good], labels[good]
            if self.rule.iou_threshold < 1:
                kept = batched_nms(boxes, values, labels, self.rule.iou_threshold)
                boxes, values, labels = boxes[kept], values[kept], labels[kept]
            most = self.rule.most_detections or len(boxes)
            results.append({"boxes": boxes[:most], "scores": values[:most], "labels": labels[:most] + 1})
        return results


CORNER = {"min_size": 96, "max_size": 96, "size_divisible": 32, "fill": 0.5}
VENDORS = {
    "best class": (
        DetectorTransform(
            **CORNER, placement="center", image_mean=(0.4, 0.5, 0.6), image_std=(0.2, 0.3, 0.4)
        ),
        DenseRule(0.4, 30_000, 300, 0.3, best_class=True, clip_last=True),
    ),
    "each class": (
        DetectorTransform(**CORNER, fill_normalized=False, antialias=False),
        DenseRule(0.3, 60, 20, 0.4, drop_empty=True),
    ),
    "queries": (DetectorTransform(fixed_size=(96, 64)), DenseRule(0.0)),
}


@pytest.mark.parametrize("kind", VENDORS)
def test_dense_outputs_of_another_library_are_decoded_as_by_its_own_code(kind):
    detector = Cells(*VENDORS[kind]).eval()
    assert has_raw_heads(detector)
    raw = RawHeads(detector, (65, 90))
    assert (raw.frame.height, raw.frame.width) == ((64, 96) if kind == "queries" else (96, 96))
    for size in ((40, 96), (96, 50), (20, 30)):
        pixels, fitted = resize_and_pad(noise(size), raw.frame)
        assert kind == "queries" or max(fitted) == 96
        with torch.inference_mode():
            boxes, scores = raw(torch.from_numpy(pixels))
        detections = raw.frame.detections(boxes[0].numpy(), scores[0].numpy(), fitted)
        expected = detect_padded(detector, torch.from_numpy(pixels), fitted)
        assert matched(detections, expected) == 1
        assert detections.labels.min() >= 1


@pytest.mark.parametrize("kind", VENDORS)
def test_an_image_that_fills_the_input_has_the_detections_of_the_detector(kind):
    detector = Cells(*VENDORS[kind]).eval()
    frame = RawHeads(detector, (96, 96)).frame
    image = noise((frame.height, frame.width))
    with torch.inference_mode():
        (expected,) = detector([image])
    got = detect_padded(detector, image[None], (frame.height, frame.width))
    for name in expected:
        torch.testing.assert_close(got[name], expected[name])


def test_the_input_of_another_librarys_detector_is_padded_in_its_color():
    normalized, plain = (
        RawHeads(Cells(*VENDORS[kind]), (96, 96)).frame for kind in ("best class", "each class")
    )
    assert normalized.padding == pytest.approx((0.4 + 0.5 * 0.2, 0.5 + 0.5 * 0.3, 0.6 + 0.5 * 0.4))
    assert plain.padding == (0.5, 0.5, 0.5)
    assert (normalized.centered, plain.centered) == (True, False)
    assert (normalized.smoothed, plain.smoothed) == (True, False)


def test_a_detector_without_dense_outputs_says_why():
    class Without(Cells):
        dense_rule = VendorDetector.dense_rule

    detector = Without(*VENDORS["queries"])
    assert not has_raw_heads(detector)
    with pytest.raises(ModelError, match=r"no raw heads: Without gives no dense .*; export it whole"):
        RawHeads(detector, (64, 64))


def test_the_only_input_is_known():
    assert only_input(Cells(*VENDORS["queries"])) == (64, 96)
    assert only_input(Cells(*VENDORS["each class"])) is None
    ssd = build(ModelSpec(name="ssdlite320_mobilenet_v3_large", num_classes=2))
    assert only_input(ssd) == (320, 320)
    assert only_input(build(ModelSpec(name="fcos_resnet18_fpn", num_classes=2))) is None
