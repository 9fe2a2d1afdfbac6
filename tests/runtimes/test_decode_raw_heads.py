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
@given(
    seed=st.integers(0, 2**20),
    count=st.integers(0, 60),
    threshold=st.floats(0.1, 1),
    least=st.sampled_from([0, -20]),
)
def test_suppression_is_that_of_torchvision(seed, count, threshold, least):
    """Also of boxes that are turned inside out, as networks without a rule against it give some."""
    random = np.random.default_rng(seed)
    corners = random.uniform(0, 60, (count, 2))
    boxes = np.concatenate([corners, corners + random.uniform(least, 40, (count, 2))], 1).astype(np.float32)
    scores = random.permutation(count).astype(np.float32) / max(count, 1)
    labels = random.integers(0, 3, count)
    expected = batched_nms(*(torch.from_numpy(a) for a in (boxes, scores, labels)), threshold)
    assert suppress(boxes, scores, labels, threshold).tolist() == expected.tolist()
    assert suppress(boxes, scores, labels, threshold, most=5).tolist() == expected[:5].tolist()


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


def test_a_file_of_an_earlier_version_is_read_as_it_was_meant():
    fields = json.loads(FRAME.to_json())
    earlier = {name: fields[name] for name in list(fields)[:11]}
    assert list(earlier)[-1] == "most_detections"
    assert Frame.from_json(json.dumps(earlier)) == FRAME


def changed(**changes):
    return Frame(**{**FRAME.__dict__, **changes})


def test_labels_count_from_that_of_the_first_column():
    scores = np.zeros((15, 3), np.float32)
    scores[[0, 5], [2, 0]] = 0.9, 0.8
    boxes = np.array([[8.0 * n, 0, 8 * n + 6, 6] for n in range(15)], np.float32)
    assert changed(label_of_first=1).detections(boxes, scores, (64, 96)).labels.tolist() == [3, 1]


def test_an_anchor_may_stand_for_its_best_label_alone():
    scores = np.zeros((15, 3), np.float32)
    scores[0] = 0.9, 0.2, 0.8
    scores[1] = 0.1, 0.6, 0.7
    boxes = np.array([[8.0 * n, 0, 8 * n + 6, 6] for n in range(15)], np.float32)
    every, best = (changed(best_class=best).detections(boxes, scores, (64, 96)) for best in (False, True))
    assert every.labels.tolist() == [0, 2, 2, 1, 1]
    assert best.labels.tolist() == [0, 2]
    assert best.boxes[:, 0].tolist() == [0, 8]
    background = changed(best_class=True, first_label=1).detections(boxes, scores, (64, 96))
    assert background.labels.tolist() == [2, 2]


def test_images_are_enlarged_up_to_a_size_and_into_the_input():
    frame = changed(enlarged_to=80)
    assert frame.fitted_size(10, 20) == (40, 80)
    assert frame.fitted_size(20, 10) == (64, 32)
    assert frame.fitted_size(7, 160) == (4, 80)  # 3.5, rounded
    assert changed(height=640, width=640, enlarged_to=640).fitted_size(49, 49) == (640, 640)


def test_an_image_in_the_middle_is_padded_on_all_sides_and_its_boxes_are_its_own():
    frame, image = changed(centered=True), np.ones((3, 41, 50), np.float32)
    padded = frame.pad(image)
    rows, columns = (padded[0, 0] == 1).nonzero()
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (11, 51, 23, 72)
    boxes = np.tile(np.array([20, 15, 40, 90], np.float32), (15, 1))
    scores = np.full((15, 1), 0.5, np.float32)
    assert frame.detections(boxes, scores, (41, 50)).boxes.tolist() == [[0, 4, 17, 41]]


def test_boxes_are_cut_before_or_after_suppression():
    """Two boxes that are one within the image."""
    boxes = np.zeros((15, 4), np.float32)
    boxes[0], boxes[1] = (-100, 0, 10, 10), (0, 0, 10, 10)
    scores = np.zeros((15, 1), np.float32)
    scores[:2, 0] = 0.9, 0.8
    assert len(FRAME.detections(boxes, scores, (64, 96)).scores) == 1
    late = changed(clip_last=True).detections(boxes, scores, (64, 96))
    assert late.boxes.tolist() == [[0, 0, 10, 10]] * 2


def test_boxes_without_an_area_in_the_image_may_be_dropped():
    boxes = np.tile(np.array([60, 0, 90, 60], np.float32), (15, 1))
    scores = np.full((15, 1), 0.5, np.float32)
    assert FRAME.detections(boxes, scores, (64, 50)).boxes[:, 2].tolist() == [50] * 5
    assert len(changed(drop_empty=True).detections(boxes, scores, (64, 50)).scores) == 0
    assert len(changed(drop_empty=True).detections(boxes, scores, (64, 70)).scores) == 1


def test_without_suppression_the_best_are_kept_however_they_overlap():
    boxes = np.tile(np.array([0, 0, 50, 50], np.float32), (15, 1))
    scores = np.linspace(0.1, 0.8, 15, dtype=np.float32)[:, None]
    detections = changed(iou_threshold=1.0, levels=(15,)).detections(boxes, scores, (64, 96))
    assert detections.scores == pytest.approx(scores[:-6:-1, 0])
