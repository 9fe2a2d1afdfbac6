"""Data sets with one oddity that people's files have: their mAP is that of the clean file.

The reference is pycocotools on the clean annotation file itself, with detections near its boxes.
"""

import copy
import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from autoprune.data.annotations import silence
from autoprune.data.coco import open_data
from autoprune.data.evaluate import check_boxes, evaluate
from autoprune.data.label_check import check_labels
from autoprune.errors import DataError, ModelError

from .conftest import box, one_line, write_set

NAMES = ("RBC", "WBC", "Platelets")
COUNT, SIZE = 6, (120, 160)
CATEGORIES = [{"id": number, "name": name, "supercategory": "cell"} for number, name in enumerate(NAMES, 1)]
FILES = tuple(f"cell_{number}.png" for number in range(COUNT))


def clean():
    """The content of a clean file: three boxes of each class an image."""
    random = np.random.default_rng(0)
    boxes = []
    for image in range(1, COUNT + 1):
        for place in range(9):
            corners = [8 + 50 * (place % 3), 5 + 38 * (place // 3), *random.integers(12, 34, 2).tolist()]
            boxes.append(box(100 * image + place, image, corners, category=1 + place % 3))
            boxes[-1]["area"] = corners[2] * corners[3]
            boxes[-1]["iscrowd"] = 0
    images = [
        {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
        for number, name in enumerate(FILES, 1)
    ]
    return {"images": images, "annotations": boxes, "categories": copy.deepcopy(CATEGORIES)}


def detections(content):
    """Per image, in order: boxes near the true ones, some with a wrong class; labels 1 RBC, 2 WBC, …"""
    random = np.random.default_rng(1)
    answers = []
    for image in content["images"]:
        things = [each for each in content["annotations"] if each["image_id"] == image["id"]]
        corners = np.array([each["bbox"] for each in things], float) + random.normal(0, 1.5, (len(things), 4))
        corners[:, 2:] += corners[:, :2]
        labels = np.array([each["category_id"] for each in things])
        wrong = random.random(len(things)) < 0.2
        answers.append(
            {
                "boxes": torch.tensor(corners),
                "scores": torch.tensor(random.random(len(things))),
                "labels": torch.tensor(np.where(wrong, labels % 3 + 1, labels)),
            }
        )
    return answers


class Recorded(nn.Module):
    """Gives the recorded detections of the images in turn, from the first again after the last."""

    def __init__(self, answers):
        super().__init__()
        self.answers, self.place = answers, 0

    def forward(self, images):
        start, self.place = self.place, self.place + len(images)
        return [self.answers[number % len(self.answers)] for number in range(start, self.place)]


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The mAP of the recorded detections on the clean file, by pycocotools alone."""
    file = tmp_path_factory.mktemp("clean") / "clean.json"
    content = clean()
    file.write_text(json.dumps(content))
    rows = [
        {
            "image_id": image["id"],
            "category_id": int(label),
            "bbox": [x1, y1, x2 - x1, y2 - y1],
            "score": float(score),
        }
        for image, answer in zip(content["images"], detections(content), strict=True)
        for (x1, y1, x2, y2), score, label in zip(
            answer["boxes"].tolist(), answer["scores"], answer["labels"], strict=True
        )
    ]
    with silence():
        truth = COCO(str(file))
        result = COCOeval(truth, truth.loadRes(rows), "bbox")
        result.evaluate()
        result.accumulate()
        result.summarize()
    assert 0.2 < result.stats[0] < 0.8
    return float(result.stats[0])


def write(folder, content, encoding="utf-8", split="val"):
    write_set(folder, [], names=FILES, size=SIZE, split=split)
    text = json.dumps(content, ensure_ascii=False)
    (folder / f"annotations/instances_{split}.json").write_bytes(text.encode(encoding))
    return folder


def each(part, **values):
    """Sets fields of every record of a part; callables get the record, ``...`` removes the field."""

    def change(content):
        for record in content[part]:
            for key, value in values.items():
                record[key] = value(record) if callable(value) else value
                if value is ...:
                    del record[key]

    return change


def ids(image=lambda number: number, category=lambda number: number):
    def change(content):
        each("images", id=lambda record: image(record["id"]))(content)
        each("categories", id=lambda record: category(record["id"]))(content)
        each(
            "annotations",
            image_id=lambda record: image(record["image_id"]),
            category_id=lambda record: category(record["category_id"]),
        )(content)

    return change


def root(name="cells", parent="none", others="cells"):
    def change(content):
        each("categories", supercategory=others)(content)
        content["categories"].insert(0, {"id": 0, "name": name, "supercategory": parent})

    return change


def polygons(content):
    for record in content["annotations"]:
        x, y, width, height = record["bbox"]
        record["segmentation"] = [[x, y, x + width, y, x + width, y + height, x, y + height]]
        del record["bbox"]


def add(**fields):
    """Another annotation like the first, with these fields."""

    def change(content):
        content["annotations"].append({**content["annotations"][0], "id": "added", **fields})

    return change


SAME = {
    "sizes of -1": each("images", width=-1, height=-1),
    "sizes of 0": each("images", width=0, height=0),
    "sizes of null": each("images", width=None, height=None),
    "one size": each("images", width=None),
    "sizes as texts": each("images", width="160", height="120"),
    "sizes as floats": each("images", width=160.0, height="120.0"),
    "no sizes": each("images", width=..., height=...),
    "areas of -1": each("annotations", area=-1),
    "areas of 0": each("annotations", area=0),
    "areas of null": each("annotations", area=None),
    "areas as texts": each("annotations", area=lambda record: str(record["area"])),
    "huge areas": each("annotations", area=1e15),
    "no areas": each("annotations", area=...),
    "iscrowd as text": each("annotations", iscrowd="0"),
    "iscrowd false": each("annotations", iscrowd="false"),
    "iscrowd null": each("annotations", iscrowd=None),
    "iscrowd empty": each("annotations", iscrowd=""),
    "no iscrowd": each("annotations", iscrowd=...),
    "ids as floats": ids(float, float),
    "ids as texts": ids(str, str),
    "padded ids": ids(lambda number: f"{number:012d}"),
    "uuids": ids(lambda number: f"9f1c-{number}", lambda number: f"{'cab'[number - 1]}7-{number}"),
    "category ids from 0": ids(category=lambda number: number - 1),
    "category ids with gaps": ids(category=lambda number: 10 * number),
    "huge ids": ids(lambda number: 2**70 + number, lambda number: 2**70 + number),
    "Roboflow's root": root(),
    "a root alone": root(others="cell"),
    "a root of the name of a class": root("RBC", others="RBC"),
    "background": root("background", others="cell", parent="cell"),
    "boxes as texts": each("annotations", bbox=lambda record: [str(value) for value in record["bbox"]]),
    "a text of a box": each("annotations", bbox=lambda record: str(record["bbox"])),
    "polygons alone": polygons,
    "backslashes": each("images", file_name=lambda record: f"images\\{record['file_name']}"),
    "absolute paths": each("images", file_name=lambda record: f"/home/me/set/images/{record['file_name']}"),
    "drives": each("images", file_name=lambda record: f"D:\\set\\{record['file_name']}"),
    "Label Studio's uploads": each(
        "images", file_name=lambda record: f"/data/upload/3/0123abcd-{record['file_name']}"
    ),
    "Label Studio's files": each(
        "images", file_name=lambda record: f"/data/local-files/?d=some/{record['file_name']}"
    ),
    "annotation ids as texts": each("annotations", id="a"),
    "annotation ids missing": each("annotations", id=...),
}

LEFT_OUT = {
    "no category": (add(category_id=...), "it has no category_id"),
    "category null": (add(category_id=None), "it has no category_id"),
    "category unknown": (add(category_id=9), "its category 9 is unknown"),
    "no image": (add(image_id=None), "it has no image_id"),
    "NaN": (add(bbox=[1, 2, float("nan"), 4]), "is not [x, y, width, height]"),
    "beyond floats": (add(bbox=[1, 2, 10**400, 4]), "is not [x, y, width, height]"),
    "infinite": (add(bbox=[1, 2, float("inf"), 4]), "is not [x, y, width, height]"),
    "sliver at the edge": (add(bbox=[159.9999999, 10, 5, 40]), "is empty in training"),
    "sliver": (add(bbox=[30.2, 20.1, 1e-6, 30]), "is empty in training"),
    "no box": (add(bbox=...), "is not [x, y, width, height]"),
    "iscrowd unclear": (add(iscrowd="perhaps"), "neither 0 nor 1"),
}


def strip(content):
    for record in content["annotations"]:
        for key in [key for key, value in record.items() if value is ...]:
            del record[key]


@pytest.mark.parametrize("name", SAME)
def test_what_has_one_reading_has_the_map_of_the_clean_file(tmp_path, expected, name):
    content = clean()
    answers = detections(content)
    SAME[name](content)
    strip(content)
    split = open_data(write(tmp_path, content), "val", strict=True)
    assert evaluate(Recorded(answers), split).map == pytest.approx(expected, abs=1e-12)
    assert split.categories == {1: "RBC", 2: "WBC", 3: "Platelets"}
    check_labels(Recorded(answers), split, 4)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_encodings(tmp_path, expected, encoding):
    content = clean()
    each("categories", name=lambda record: record["name"] + " 細胞")(content)
    split = open_data(write(tmp_path, content, encoding), "val", strict=True)
    assert evaluate(Recorded(detections(clean())), split).map == pytest.approx(expected, abs=1e-12)
    assert split.categories[1] == "RBC 細胞"


@pytest.mark.parametrize("name", LEFT_OUT)
def test_one_bad_box_is_left_out_and_named(tmp_path, expected, name):
    change, reason = LEFT_OUT[name]
    content = clean()
    change(content)
    strip(content)
    split = open_data(write(tmp_path, content), "val")
    assert len(split.skipped) == 1
    assert split.skipped[0].startswith("annotation added (")
    assert reason in split.skipped[0]
    assert evaluate(Recorded(detections(clean())), split).map == pytest.approx(expected, abs=1e-12)


def test_what_was_read_in_another_way_is_counted(tmp_path):
    content = clean()
    each("annotations", area=-1)(content)
    polygons(content)
    write(tmp_path, content)
    split = open_data(tmp_path, "val", strict=True)
    first = "54, first annotation 100 (cell_0.png)"
    assert split.notes == [
        f"boxes taken around the segmentation, as bbox is not given: {first}",
        f"areas taken as width x height, as none is given that can be used: {first}",
    ]


def test_crowds_alone_are_refused_with_the_reason(tmp_path):
    content = clean()
    each("annotations", iscrowd="1")(content)
    split = open_data(write(tmp_path, content), "val")
    for measure in (lambda: check_boxes(split), lambda: evaluate(Recorded(detections(clean())), split)):
        with pytest.raises(DataError, match="all 54 are crowds"):
            measure()


def test_two_names_of_one_file_are_left_out(tmp_path):
    content = clean()
    for number, record in enumerate(content["images"][:2]):
        record["file_name"] = f"/camera_{number}/cell_0.png"
    split = open_data(write(tmp_path, content), "val")
    assert split.image_ids == [3, 4, 5, 6]
    assert sum("could be /camera_0/cell_0.png or /camera_1/cell_0.png" in line for line in split.skipped) == 2
    assert len(split.skipped) == 2 + 2 * 9


@pytest.mark.parametrize("part", ["boxes", "scores"])
def test_a_detector_that_gives_nan_is_refused(tmp_path, part):
    content = clean()
    answers = detections(content)
    answers[2][part][1] = float("nan")
    split = open_data(write(tmp_path, content), "val")
    with pytest.raises(ModelError, match=r"NaN or infinite on .*cell_2\.png") as error:
        evaluate(Recorded(answers), split)
    one_line(error)


def test_the_training_split_decides_the_labels_of_a_reordered_one(tmp_path, expected):
    write(tmp_path, clean(), split="train")
    content = clean()
    ids(category={1: 3, 2: 1, 3: 2}.get)(content)
    content["categories"].reverse()
    split = open_data(write(tmp_path, content), "val", strict=True)
    assert evaluate(Recorded(detections(clean())), split).map == pytest.approx(expected, abs=1e-12)
