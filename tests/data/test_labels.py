"""Labels of categories, by their ids and by their names."""

import pytest

from autoprune.data.labels import (
    as_option,
    default_labels,
    describe,
    find_root,
    has_categories,
    labels_by_name,
)
from autoprune.errors import DataError

from .conftest import write_set


def categories(*names, first=1, **parents):
    return {
        number: {"id": number, "name": name, **({"supercategory": parents[name]} if name in parents else {})}
        for number, name in enumerate(names, first)
    }


ROBOFLOW = categories("cells", "RBC", "WBC", first=0, cells="none", RBC="cells", WBC="cells")
ALONE = categories("cells", "RBC", "WBC", first=0, cells="none", RBC="cell", WBC="cell")
SAME_NAME = categories("ball", "Ball", first=0, ball="none", Ball="ball")


@pytest.mark.parametrize("listed", [ROBOFLOW, ALONE, SAME_NAME, categories("background", "a", first=0)])
def test_a_root_without_boxes_has_no_label(listed):
    labels = default_labels(listed, used={1})
    assert labels.left_out == (0,)
    assert labels.names == {number: record["name"] for number, record in listed.items() if number}
    assert labels.category_ids == {number: number for number in listed if number}


@pytest.mark.parametrize(
    ("listed", "used"),
    [
        (ROBOFLOW, {0, 1}),
        (categories("a", "b", first=0), {1}),
        (categories("a", "b", first=0, a="none", b="none"), {1}),
        (categories("a", "b", first=0, a="x", b="x"), {1}),
        (categories("a", first=0, a="none"), set()),
        (categories("cells", "RBC", first=1, cells="none", RBC="cells"), {2}),
    ],
)
def test_what_is_no_root(listed, used):
    assert find_root(listed, used) is None
    assert len(default_labels(listed, used).names) == len(listed)


def test_a_root_may_have_another_id():
    listed = categories("RBC", "cells", cells="none", RBC="cells")
    assert [find_root(listed, used, 2) for used in ({1}, {1, 2})] == [2, None]
    assert find_root(listed, {2}, 1) is None


def test_a_root_may_have_a_label():
    assert default_labels(ROBOFLOW, (), with_root=True).names == {1: "cells", 2: "RBC", 3: "WBC"}


def test_labels_by_name_in_another_order_and_with_other_ids():
    listed = {7: {"name": "b"}, 3: {"name": "a"}, 0: {"name": "root"}}
    labels = labels_by_name({1: "a", 2: "b", 3: "c"}, listed, boxes={7: 2, 3: 1})
    assert labels.names == {1: "a", 2: "b", 3: "c"}
    assert labels.category_ids == {1: 3, 2: 7}
    assert labels.left_out == (0,)
    with pytest.raises(
        DataError,
        match=r'2 boxes are of the category "b", which has no label \(labels: 1 a, 2 B; no .* named "B"\)',
    ):
        labels_by_name({1: "a", 2: "B"}, listed, boxes={7: 2})
    with pytest.raises(DataError, match='2 boxes are of the category "b", which has no label'):
        labels_by_name({1: "a"}, listed, boxes={7: 2})


def test_two_categories_of_one_name():
    listed = categories("a", "a")
    assert labels_by_name({1: "a", 2: "a"}, listed, {1: 1, 2: 1}).category_ids == {1: 1, 2: 2}
    with pytest.raises(DataError, match='two categories are named "a"'):
        labels_by_name({5: "a"}, listed, {1: 1, 2: 1})
    for used, unused in ((1, 2), (2, 1)):
        labels = labels_by_name({5: "a"}, listed, {used: 1})
        assert (labels.category_ids, labels.left_out) == ({5: used}, (unused,))


def test_texts():
    names = {2: "b", 1: "a"}
    assert describe(names) == "1 a, 2 b"
    assert as_option(names) == "a=1,b=2"
    assert describe({number: "x" for number in range(100)}).endswith("11 x, … (100 in all)")


def test_a_file_with_the_same_categories_is_known_without_reading_it(tmp_path):
    file = write_set(tmp_path, [], categories=[{"id": 1, "name": "猫"}]) / "annotations/instances_val.json"
    assert has_categories(file, categories("猫"))
    assert not has_categories(file, categories("dog"))
    assert not has_categories(tmp_path / "lost.json", categories("猫"))
    for text in (
        "",
        '{"categories": 3}',
        '{"categories": [3]}',
        '{"categories": [{"id": [1], "name": 2}]}',
        "{}",
    ):
        file.write_text(text)
        assert not has_categories(file, categories("猫"))
