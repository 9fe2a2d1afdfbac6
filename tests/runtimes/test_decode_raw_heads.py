"""Dense outputs are decoded as torchvision's own detectors and operators decode them."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.ops import batched_nms

from autoprune.runtimes.decode_raw_heads import Frame, suppress

FRAME = Frame(
    height=64,
    width=96,
    stretch=False,
    padding=(0.5, 0.25, 0.125),
    levels=(12, 3),
    per_class=False,
    first_label=0,
    score_threshold=0.05,
    most_candidates=10,
    iou_threshold=0.5,
    most_detections=5,
)


@settings(deadline=None, max_examples=50)
@given(seed=st.integers(0, 2**20), count=st.integers(0, 60), threshold=st.floats(0.1, 0.9))
def test_suppression_is_that_of_torchvision(seed, count, threshold):
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(0, 40, (count, 2))], 1).astype(np.float32)
    scores = random.permutation(count).astype(np.float32) / max(count, 1)
    labels = random.integers(0, 3, count)
    expected = batched_nms(*(torch.from_numpy(a) for a in (boxes, scores, labels)), threshold)
    assert suppress(boxes, scores, labels, threshold).tolist() == expected.tolist()


def test_boxes_without_an_area_neither_suppress_nor_are_suppressed():
    boxes = np.array([[5, 5, 5, 5], [5, 5, 5, 5], [0, 0, 9, 9]], np.float32)
    kept = suppress(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros(3, np.int64), 0.5)
    assert kept.tolist() == [0, 1, 2]


def test_each_level_contributes_its_best_candidates_and_the_image_keeps_its_best_detections():
    boxes = np.array([[8.0 * n, 0, 8 * n + 6, 6] for n in range(15)], np.float32)  # none overlaps another
    scores = np.zeros((15, 1), np.float32)
    scores[:12, 0] = np.linspace(0.5, 0.94, 12)
    scores[12:, 0] = (0.2, 0.04, 0.3)
    wide = Frame(**{**FRAME.__dict__, "width": 200, "most_candidates": 2})
    _, values, labels = wide.detections(boxes, scores, (64, 200))
    assert values == pytest.approx(
        [0.94, 0.9, 0.3, 0.2]
    )  # two of each level, and 0.04 is below the threshold
    assert labels.tolist() == [0, 0, 0, 0]
    assert len(FRAME.detections(boxes, scores, (64, 96))[0]) == 5


def test_boxes_end_where_the_image_ends_and_not_where_its_padding_does():
    boxes = np.tile(np.array([-3, -3, 90, 60], np.float32), (15, 1))
    corners, _, _ = FRAME.detections(boxes, np.full((15, 2), 0.5, np.float32), (40, 50))
    assert corners.tolist() == [[0, 0, 50, 40]] * 2  # one of each label


def test_an_image_is_padded_with_the_mean_color_and_shrunk_only_where_it_does_not_fit():
    image = np.random.default_rng(0).random((3, 40, 50)).astype(np.float32)
    padded = FRAME.pad(image)
    assert padded.shape == (1, 3, 64, 96)
    assert np.array_equal(padded[0, :, :40, :50], image)
    assert padded[0, :, 63, 95].tolist() == [0.5, 0.25, 0.125]
    assert FRAME.fitted_size(40, 50) == (40, 50)
    assert FRAME.fitted_size(128, 96) == (64, 48)
    assert Frame(**{**FRAME.__dict__, "stretch": True}).fitted_size(10, 10) == (64, 96)


def test_a_frame_survives_json():
    assert Frame.from_json(FRAME.to_json()) == FRAME
    assert json.loads(FRAME.to_json())["levels"] == [12, 3]
