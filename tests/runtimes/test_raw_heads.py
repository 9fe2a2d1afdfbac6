"""Raw heads, decoded by `Frame.detections`, have the detections of the detector as torchvision runs it."""

import numpy as np
import pytest
import torch

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ModelError
from autoprune.runtimes.raw_heads import RawHeads, detect_padded, has_raw_heads


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


def test_a_detector_of_two_stages_is_refused():
    spec = ModelSpec(name="fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=2)
    detector = build(spec).eval()
    assert not has_raw_heads(detector)
    with pytest.raises(
        ModelError, match=r"one-stage detector .* FasterRCNN; export it whole, without --raw-heads"
    ):
        RawHeads(detector, (64, 64))
