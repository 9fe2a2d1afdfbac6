"""What raw heads of every vendor's detector have to do."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from autoprune.runtimes.decode_raw_heads import Detections
from autoprune.runtimes.onnx import write_raw_heads
from autoprune.runtimes.raw_heads import RawHeads, detect_padded, resize_and_pad


def check_same(expected, detections, pixels, score):
    """Both find the same, but for what round-off decides: once, or at one detection in a hundred.

    Where it decides in NMS whether a box stays, two that it overlapped may be left in its place.
    """
    apart = np.abs(expected.boxes[:, None] - detections.boxes).max(-1, initial=0) / pixels
    apart = np.maximum(apart, np.abs(expected.scores[:, None] - detections.scores) / score)
    apart[expected.labels[:, None] != detections.labels] = np.inf
    both = min((apart <= 1).any(axis).sum() for axis in (0, 1)) if apart.size else 0
    count = max(apart.shape)
    assert both >= count - max(1 if count < 20 else 2, 0.01 * count), f"{both} of {apart.shape}"


def decoded(frame, boxes, scores, size):
    return frame.detections(np.asarray(boxes)[0], np.asarray(scores)[0], size)


@torch.inference_mode()
def check_decoding(detector, images, input_size):
    """Dense outputs, decoded with NumPy, are what the detector's own code finds in the same pixels."""
    raw, scores = RawHeads(detector, input_size), []
    for image in images:
        pixels, size = resize_and_pad(image, raw.frame)
        own = detect_padded(detector, torch.from_numpy(pixels), size)
        expected = Detections(*(own[name].numpy() for name in Detections._fields))
        dense = raw(torch.from_numpy(pixels))
        assert dense[0].shape == (1, sum(raw.frame.levels), 4)
        detections = decoded(raw.frame, *dense, size)
        check_same(expected, detections, 0.01, 1e-5)
        scores.extend(detections.scores.round(3))
    assert len({*scores}) > len(images)
    return raw


@torch.inference_mode()
def check_file(raw, session, image):
    """A file of raw heads computes what torch computes; queries may come in another order.

    Not for noise: on that, all scores of made-up weights may be 1, and any of them the best.
    """
    pixels, size = resize_and_pad(image, raw.frame)
    got, expected = session(pixels), raw(torch.from_numpy(pixels))
    assert [each.shape for each in got] == [each.shape for each in expected]
    detections = decoded(raw.frame, *expected, size)
    assert len(detections.scores) > 2
    check_same(detections, decoded(raw.frame, *got, size), 0.1, 1e-3)


def documented(detector, input_size, image, folder):
    """What the program in docs/export.md finds in an image: boxes in its pixels, scores and labels."""
    for package in ("cv2", "onnxruntime"):
        pytest.importorskip(package)
    page = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
    (program,) = (each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "Frame" in each)
    (folder / "heads").mkdir()
    write_raw_heads(RawHeads(detector, input_size), folder / "heads" / "raw_heads.onnx")
    image.save(folder / "photo.png")
    names = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        exec(program.replace("photo.jpg", "photo.png"), names)  # which keeps the pixels
    detections = names["detections"]
    return names["boxes"], detections.scores, detections.labels
