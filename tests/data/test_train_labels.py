"""All splits of a data set have the labels of its training split."""

import json

import pytest

from autoprune.data.coco import check_same_classes, open_data
from autoprune.errors import DataError
from autoprune.fields import DataPaths, SplitPaths

from .conftest import box, one_line, write_set

ABC = [{"id": number, "name": name} for number, name in enumerate("abc", 1)]


def write(folder, categories, category, split):
    return write_set(folder, [box(1, 1, category=category)], split=split, categories=categories)


@pytest.mark.parametrize(
    ("categories", "category"),
    [
        ([{"id": 1, "name": "c"}, {"id": 2, "name": "a"}, {"id": 3, "name": "b"}], 2),
        ([{"id": 40, "name": "a"}, {"id": 50, "name": "b"}, {"id": 60, "name": "c"}], 40),
        ([{"id": 0, "name": "c"}, {"id": 1, "name": "a"}], 1),
        ([{"id": "x-1", "name": "a"}], "x-1"),
        ([*ABC, {"id": 4, "name": "unused"}], 1),
    ],
)
def test_names_decide(tmp_path, categories, category):
    write(tmp_path, ABC, 1, "train")
    write(tmp_path, categories, category, "val")
    train, val = open_data(tmp_path, "train"), open_data(tmp_path, "val")
    check_same_classes(train, val)
    assert train.categories == val.categories == {1: "a", 2: "b", 3: "c"}
    assert val.get(0)[1]["labels"].tolist() == [1]
    paths = {
        split: SplitPaths(
            annotations=tmp_path / f"annotations/instances_{split}.json", images=tmp_path / "images"
        )
        for split in ("train", "val")
    }
    assert open_data(DataPaths(**paths), "val").get(0)[1]["labels"].tolist() == [1]


def test_a_split_of_other_classes_has_its_own(tmp_path):
    write(tmp_path, ABC, 1, "train")
    write(tmp_path, [{"id": 1, "name": "z"}], 1, "val")
    train, val = open_data(tmp_path, "train"), open_data(tmp_path, "val")
    assert val.categories == {1: "z"}
    with pytest.raises(DataError, match="train and val list different categories"):
        check_same_classes(train, val)
    with pytest.raises(DataError, match='1 box is of the category "z"') as error:
        open_data(tmp_path, "val", labels=train.categories)
    assert "instances_val.json" in one_line(error)


def test_a_training_split_that_can_not_be_read_decides_nothing(tmp_path):
    write(tmp_path, ABC, 1, "val")
    (tmp_path / "annotations/instances_train.json").write_text("{")
    assert open_data(tmp_path, "val").categories == {1: "a", 2: "b", 3: "c"}


def test_boxes_of_a_root_in_one_split_alone(tmp_path):
    root = [
        {"id": 0, "name": "root", "supercategory": "none"},
        {"id": 1, "name": "a", "supercategory": "root"},
    ]
    write(tmp_path, root, 1, "train")
    write(tmp_path, root, 0, "val")
    assert open_data(tmp_path, "train").categories == {1: "a"}
    content = json.loads((tmp_path / "annotations/instances_val.json").read_text())
    assert content["annotations"][0]["category_id"] == 0
    with pytest.raises(DataError, match='category "root"'):
        open_data(tmp_path, "val", labels={1: "a"})
