"""Detections of a file and of its detector are matched one to one, and a difference is refused."""

import copy

import numpy as np
import pytest
import torch
from PIL import Image

from autoprune.data.coco import Split
from autoprune.data.evaluate import evaluate
from autoprune.errors import DataError, ExportError
from autoprune.export.parity import Parity, Pictures, compare, padded, whole
from autoprune.runtimes.raw_heads import RawHeads


def detections_of(boxes, scores, labels):
    detections = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    return lambda image: detections


def test_detections_match_by_label_box_and_score_and_none_twice(split):
    box, far = [0, 0, 10, 10], [0, 0, 10, 11]
    expected = detections_of([box, box, far, [50, 50, 60, 60]], [0.9, 0.8, 0.7, 0.6], [1, 1, 2, 3])
    file = detections_of([box, far, far, [50, 50, 60, 60.25]], [0.9, 0.8, 0.7, 0.605], [1, 1, 1, 3])
    result = compare(expected, file, split, 1)
    # the first and the last; then a box too far off, and a label that differs
    assert (result.detections, result.matched, result.extra) == (4, 2, 2)
    assert result.box_pixels == pytest.approx(0.25)
    assert result.score == pytest.approx(0.005, abs=1e-6)


def test_map_of_the_comparison_is_that_of_evaluate(detector, split):
    result = compare(whole(detector), whole(detector), split, len(split))
    assert result.matched == result.detections > 10
    assert (
        result.map_detector
        == result.map_file
        == pytest.approx(evaluate(detector, split, batch_size=1).map, abs=1e-3)
    )


def test_images_without_boxes_are_compared_without_map(detector, split):
    class Unlabeled(Split):
        """The same images, of which the first two have no boxes."""

        def __init__(self):
            self.__dict__.update(split.__dict__)
            self.coco = copy.copy(split.coco)
            none = {number: [] for number in split.image_ids[:2]}
            self.coco.imgToAnns = {**split.coco.imgToAnns, **none}

    result = compare(whole(detector), whole(detector), Unlabeled(), 2)
    assert result.matched == result.detections > 5
    assert (result.map_detector, result.map_file) == (None, None)
    assert compare(whole(detector), whole(detector), Unlabeled(), 3).map_file is not None


def test_an_image_that_fills_the_input_needs_no_padding(detector, split):
    frame = RawHeads(detector, split.sizes[0]).frame
    result = compare(whole(detector), padded(detector, frame), split, 3)
    assert result.matched == result.detections > 5
    assert result.extra == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"matched": 90}, "90 of 100 match in 8 images, and it has 0 others"),
        ({"extra": 20}, "100 of 100 match in 8 images, and it has 20 others"),
        ({"map_file": 0.402}, "mAP 40.20, the detector 40.00"),
        ({"detections": 0, "matched": 0}, "finds nothing in 8 images"),
    ],
)
def test_a_difference_is_refused(wrong, message):
    right = {"images": 8, "detections": 100, "matched": 100, "extra": 0, "box_pixels": 0.0, "score": 0.0}
    right |= {"map_detector": 0.4, "map_file": 0.4005}
    Parity(**right).check("model.onnx")
    with pytest.raises(ExportError, match=message):
        Parity(**{**right, **wrong}).check("model.onnx")


def test_a_folder_of_images_is_compared_on_without_map(detector, tmp_path):
    random = np.random.default_rng(0)
    for name in ("b.png", "a.jpg"):
        Image.fromarray(random.integers(0, 255, (90, 120, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    pictures = Pictures(tmp_path, None)
    assert [tuple(pictures[index].shape) for index in range(len(pictures))] == [(3, 90, 120)] * 2
    box = detections_of([[0, 0, 9, 9]], [0.9], [1])
    result = compare(box, box, pictures, 5)
    assert (result.images, result.matched, result.map_file) == (2, 2, None)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no images in .*give --images a folder"):
        Pictures(tmp_path, None)
    with pytest.raises(DataError, match="there is no such folder"):
        Pictures(tmp_path / "absent", None)
