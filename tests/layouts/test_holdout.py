"""Which images a hash of their names sets aside for validation."""

from hashlib import sha256

import pytest

from autoprune.data.coco import open_data
from autoprune.errors import DataError
from autoprune.layouts.holdout import held_out, name_hash, take_part
from autoprune.layouts.source import Part

from .conftest import coco, names_of, picture, refused, some_boxes, write_json


def content_of(names):
    return coco(names, some_boxes(len(names)))


def names_in(content, part, fraction):
    return {image["file_name"] for image in take_part(content, Part(part, fraction))["images"]}


def test_an_image_stays_where_it_is_when_others_come_or_the_fraction_grows():
    names = [f"img_{number}.jpg" for number in range(400)]
    few, many = content_of(names[:200]), content_of(names)
    val = names_in(few, "val", 0.2)
    assert 20 < len(val) < 60  # 40 expected
    assert names_in(many, "val", 0.2) & {*names[:200]} == val
    assert val < names_in(few, "val", 0.4)
    assert names_in(few, "train", 0.2) == {*names[:200]} - val
    assert val == {
        name for name in names[:200] if int(sha256(name.encode()).hexdigest()[:14], 16) / 2**56 < 0.2
    }


def test_annotations_go_with_their_image_and_strays_with_both_parts():
    content = content_of([f"{number}.jpg" for number in range(30)])
    content["images"][3]["id"] = 4.0
    content["annotations"].append({"id": 99, "image_id": 1000})
    parts = [take_part(content, Part(name, 0.5)) for name in ("train", "val")]
    for part in parts:
        ids = {image["id"] for image in part["images"]}
        assert {record["image_id"] for record in part["annotations"]} == ids | {1000}
    assert sum(len(part["images"]) for part in parts) == 30
    assert len(content["images"]) == 30, "the content that is divided does not change"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("images/a.jpg", "images\\a.jpg"),
        ("a.jpg", "./a.jpg"),
        ("/home/me/a.jpg", "/mnt/a.jpg"),
        ("C:\\data\\a.jpg", "a.jpg"),
        ("a_jpg.rf.0123abcd.jpg", "a_jpg.rf.9999ffff.jpg"),  # augmented copies of one image
    ],
)
def test_spellings_of_one_image_are_one(one, other):
    assert name_hash(one) == name_hash(other)
    assert name_hash(one) != name_hash("b.jpg")


def test_neither_part_is_empty():
    assert held_out([0.3, 0.5, 0.9], 0.1) == {0.3}
    assert held_out([0.3, 0.5, 0.9], 0.95) == {0.3, 0.5}
    with pytest.raises(DataError, match="different names of images: 1, too few"):
        held_out([0.3, 0.3], 0.5)


def test_it_is_refused_where_there_is_a_validation_split(tmp_path):
    for split in ("train", "val"):
        names = [f"{split}_{number}.png" for number in range(2)]
        for name in names:
            picture(tmp_path / "images", name, (2, 3, 10, 10))
        write_json(tmp_path / f"annotations/instances_{split}.json", content_of(names))
    assert "has a validation split" in refused(tmp_path, "train", val_fraction=0.2)
    (tmp_path / "annotations/instances_val.json").unlink()
    assert "has no validation split: it has train" in refused(tmp_path)
    assert len(open_data(tmp_path, "train")) == 2  # to train on all of it is one reading
    parts = [names_of(open_data(tmp_path, split, val_fraction=0.2)) for split in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == ["train_0.png", "train_1.png"]
