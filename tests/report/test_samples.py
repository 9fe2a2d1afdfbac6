"""Correct, false and missed boxes agree with COCOeval's matching; pictures are embedded at a legible size."""

import base64
import io
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from autoprune.report.samples import LARGEST_SIDE, SMALLEST_SIDE, match, read_samples

BOXES = st.tuples(st.integers(0, 6), st.integers(0, 6), st.integers(2, 8), st.integers(2, 8))
THINGS = st.lists(st.tuples(BOXES, st.sampled_from("ab")), max_size=6)


def corners(box):
    x, y, width, height = box
    return [float(x), float(y), float(x + width), float(y + height)]


def matched_by_coco(detections, truth):
    """Index of the true box of each detection, as COCOeval matches them at an IoU of 0.5."""
    numbers = {"a": 1, "b": 2}
    base = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}], "info": {}}

    def index(things, scores):
        coco = COCO()
        coco.dataset = {
            **base,
            "annotations": [
                {
                    "id": place + 1,
                    "image_id": 1,
                    "category_id": numbers[label],
                    "bbox": [float(value) for value in box],
                    "area": 30.0,
                    "iscrowd": 0,
                    "score": score,
                }
                for place, ((box, label), score) in enumerate(zip(things, scores, strict=True))
            ],
        }
        coco.createIndex()
        return coco

    scores = np.linspace(0.9, 0.1, len(detections)).tolist()
    evaluation = COCOeval(index(truth, [1.0] * len(truth)), index(detections, scores), "bbox")
    evaluation.params.iouThrs = np.array([0.5])
    evaluation.evaluate()
    pairs = {}
    for image in evaluation.evalImgs:
        if image is not None and image["aRng"] == evaluation.params.areaRng[0]:
            for place, partner in zip(image["dtIds"], image["dtMatches"][0], strict=True):
                if partner:
                    pairs[place - 1] = int(partner) - 1
    return pairs


SQUARE, LOWER, TALL = (0, 0, 2, 2), (0, 1, 2, 2), (0, 0, 2, 3)


@given(THINGS, THINGS)
@example(  # the tall box overlaps all true ones alike: if it takes another, one is left without a match
    [(box, "a") for box in (TALL, SQUARE, SQUARE, SQUARE)], [(box, "a") for box in (*[SQUARE] * 3, LOWER)]
)
def test_pairs_are_those_of_cocoeval(detections, truth):
    ours = match(
        [{"box": corners(box), "label": label} for box, label in detections],
        [{"box": corners(box), "label": label} for box, label in truth],
    )
    theirs = matched_by_coco(detections, truth)
    assert ours.keys() == theirs.keys()


@pytest.mark.parametrize(
    ("size", "shown"),
    [((64, 128), (SMALLEST_SIDE // 2, SMALLEST_SIDE)), ((2000, 1000), (LARGEST_SIDE, LARGEST_SIDE // 2))],
)
def test_pictures_are_resized_and_boxes_go_with_them(tmp_path, size, shown):
    height, width = size
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2] = 255
    Image.fromarray(pixels).save(tmp_path / "white.png")
    corner = [0.0, 0.0, width / 2, height / 2]
    content = {
        "file": str(tmp_path / "white.png"),
        "height": height,
        "width": width,
        "truth": [{"box": corner, "label": "white"}],
        "found": {"dense": [{"box": corner, "label": "white", "score": 0.8}], "pruned": []},
    }
    (tmp_path / "samples.json").write_text(json.dumps({"split": "val", "images": [content]}))
    (sample,), missing = read_samples(tmp_path)
    assert missing is None
    assert (sample.height, sample.width) == shown
    with Image.open(io.BytesIO(base64.b64decode(sample.picture.split(",")[1]))) as picture:
        assert (picture.height, picture.width) == shown
        x1, y1, x2, y2 = sample.detections["dense"][0].box
        place = round((x1 + x2) / 2 * picture.width), round((y1 + y2) / 2 * picture.height)
        assert picture.getpixel(place) > (250, 250, 250)
    assert sample.detections["dense"][0].correct
    assert sample.truth["dense"][0].score == 0.8
    assert sample.truth["pruned"][0].score == 0
