"""An exported file is kept only where it finds what the detector finds."""

import copy
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from autoprune.config import ModelSpec
from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.detectors import build, load_dense
from autoprune.errors import DataError, ExportError, ModelError
from autoprune.export import formats
from autoprune.export.parity import Parity, Pictures, compare, placed, whole
from autoprune.runtimes.raw_heads import RawHeads

needs_onnx = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("onnx", "onnxruntime")),
    reason="the extra `onnx` is not installed",
)


@pytest.fixture(scope="module")
def detector(demo_settings):
    return load_dense(
        demo_settings["model"], demo_settings["model_arguments"], weights=demo_settings["weights"]
    )[0]


@pytest.fixture(scope="module")
def split(demo_settings):
    return open_data(demo_settings["data"], "val")


def finder(boxes, scores, labels):
    found = {
        "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
        "scores": torch.tensor(scores),
        "labels": torch.tensor(labels, dtype=torch.int64),
    }
    return lambda image: found


def test_detections_agree_by_label_box_and_score_and_none_twice(split):
    box, far = [0, 0, 10, 10], [0, 0, 10, 11]
    expected = finder([box, box, far, [50, 50, 60, 60]], [0.9, 0.8, 0.7, 0.6], [1, 1, 2, 3])
    file = finder([box, far, far, [50, 50, 60, 60.25]], [0.9, 0.8, 0.7, 0.605], [1, 1, 1, 3])
    found = compare(expected, file, split, 1)
    # the first and the last; then a box too far off, and a label that differs
    assert (found.detections, found.alike, found.extra) == (4, 2, 2)
    assert found.box_pixels == pytest.approx(0.25)
    assert found.score == pytest.approx(0.005, abs=1e-6)


def test_map_of_the_comparison_is_that_of_evaluate(detector, split):
    found = compare(whole(detector), whole(detector), split, len(split))
    assert found.alike == found.detections > 10
    assert (
        found.map_detector
        == found.map_file
        == pytest.approx(evaluate(detector, split, batch_size=1).map, abs=1e-3)
    )


def test_an_image_that_fills_the_frame_is_seen_as_the_detector_sees_it(detector, split):
    frame = RawHeads(detector, split.sizes[0]).frame
    found = compare(whole(detector), placed(detector, frame), split, 3)
    assert found.alike == found.detections > 5
    assert found.extra == 0


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"alike": 90}, "90 of 100 detections in 8 images agree, 0 are its own"),
        ({"extra": 20}, "100 of 100 detections in 8 images agree, 20 are its own"),
        ({"map_file": 0.402}, "mAP 40.20, the detector 40.00"),
        ({"detections": 0, "alike": 0}, "finds nothing in 8 images"),
    ],
)
def test_a_difference_is_refused(wrong, message):
    right = {"images": 8, "detections": 100, "alike": 100, "extra": 0, "box_pixels": 0.0, "score": 0.0}
    right |= {"map_detector": 0.4, "map_file": 0.4005}
    Parity(**right).check("model.onnx")
    with pytest.raises(ExportError, match=message):
        Parity(**{**right, **wrong}).check("model.onnx")


@needs_onnx
def test_both_onnx_files_and_the_program_agree_with_the_detector(detector, split, tmp_path):
    for path, found in (
        formats.write_onnx(detector, tmp_path, split, 4),
        formats.write_raw(detector, tmp_path, split, 4, split.sizes[0], "onnx"),
        formats.write_raw(detector, tmp_path, split, 4, split.sizes[0], "pt2"),
    ):
        assert path.is_file()
        assert found.alike == found.detections > 10
        assert found.extra == 0
        assert found.map_file == pytest.approx(found.map_detector, abs=1e-3)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "raw_heads.onnx", "raw_heads.pt2"}


@needs_onnx
def test_a_file_of_other_weights_is_deleted(detector, split, tmp_path, monkeypatch):
    honest = formats.write_whole

    def other_weights(model, example, path):
        model = copy.deepcopy(model)
        with torch.no_grad():
            model.head.regression_head.bbox_reg.bias.add_(0.3)
        return honest(model, example, path)

    monkeypatch.setattr(formats, "write_whole", other_weights)
    with pytest.raises(ExportError, match=r"model\.onnx does not find what the detector finds"):
        formats.write_onnx(detector, tmp_path, split, 2)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_images_is_compared_on_without_map(detector, tmp_path):
    random = np.random.default_rng(0)
    for name in ("b.png", "a.jpg"):
        Image.fromarray(random.integers(0, 255, (90, 120, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no image")
    pictures = Pictures(tmp_path, None)
    assert [tuple(image.shape) for image in pictures] == [(3, 90, 120)] * 2
    box = finder([[0, 0, 9, 9]], [0.9], [1])
    found = compare(box, box, pictures, 5)
    assert (found.images, found.alike, found.map_file) == (2, 2, None)


def test_a_folder_without_images_is_refused(tmp_path):
    (tmp_path / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match=r"no images in .*give --images a folder"):
        Pictures(tmp_path, None)
    with pytest.raises(DataError, match="there is no such folder"):
        Pictures(tmp_path / "absent", None)


def test_raw_heads_of_two_stages_are_refused(split, tmp_path):
    model = build(ModelSpec(name="fasterrcnn_mobilenet_v3_large_320_fpn", num_classes=2)).eval()
    with pytest.raises(ModelError, match="without --raw-heads"):
        formats.write_raw(model, tmp_path, split, 1, (64, 64), "onnx")
