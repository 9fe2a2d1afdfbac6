"""What a record's id, or its name, refers to."""

import json

import pytest

from autoprune.data.coco import open_data
from autoprune.errors import DataError
from autoprune.records.ids import Ids

from ..data.conftest import box, edit, one_line, write_set


def test_ids_that_are_whole_numbers_are_the_numbers():
    ids = Ids([3, 1, 900])
    assert not ids.renumbered
    assert [ids.number(each) for each in (3, 3.0, "3", "900", 4, None, [3], "x", True)] == [
        3, 3, 3, 900, None, None, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize("ids", [["b-2", "a-1"], ["b-2", 7], [2**60, 2**60 + 1], ["007", "7"]])
def test_other_ids_are_numbered_in_order(ids):
    numbers = Ids(ids)
    assert numbers.renumbered
    assert [numbers.number(each) for each in ids] == [1, 2]


def test_padded_numbers_are_matched_with_numbers():
    assert Ids(["000139", "000140"]).number(140) == 2
    assert Ids([139, 140]).number("000140") == 140


def test_a_name_is_read_where_it_is_no_id():
    ids = Ids([3, 1, "7"], [("cat", 3), ("7", 1), ("b.7", "7")])
    assert [ids.number(each) for each in ("cat", "b.7", "7", 7, "Cat", "cat ", "dog")] == [
        1, 3, 3, 3, None, None, None,
    ]  # fmt: skip
    assert [ids.is_name(each) for each in ("cat", "7", 3, "dog", None, ["cat"])] == [True] + [False] * 5


def test_a_name_that_could_be_the_number_of_another_is_none():
    ids = Ids([1, 2], [("2", 1), ("30", 2)])
    assert [ids.number(each) for each in ("2", "30")] == [2, None]


def test_a_name_of_several_is_refused_with_their_ids(tmp_path):
    categories = [{"id": number, "name": "cat"} for number in (4, 9)]
    folder = write_set(tmp_path, [box(1, 1, category=4)], categories=categories)
    assert len(open_data(folder, "val").coco.anns) == 1
    edit(folder, lambda content: content["annotations"].append(box(2, 1, (1, 1, 9, 9), category="cat")))
    with pytest.raises(DataError) as error:
        open_data(folder, "val")
    expected = (
        'annotations[1]: "cat" is the name of several categories, with the ids 4 and 9, and no id itself'
    )
    assert expected in one_line(error)
    assert "instances_val.json" in one_line(error)


@pytest.mark.parametrize("fields", [("image_id",), ("category_id",), ("image_id", "category_id")])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("val_fraction", [None, 0.5])
def test_names_are_read_as_the_ids_that_they_stand_for(tmp_path, fields, every, val_fraction):
    """The reference is the same file with the ids, read by Python's own JSON."""
    categories = [{"id": number, "name": name} for number, name in ((1, "cat"), (2, "dog"))]
    names = tuple(f"{number}.png" for number in range(6))
    boxes = [box(place, 1 + place % 6, (place, 2, 9, 8), category=1 + place % 2) for place in range(12)]
    folder = write_set(tmp_path, boxes, "train", names, categories=categories)
    file = folder / "annotations/instances_train.json"
    plain = json.loads(file.read_text())
    written = json.loads(file.read_text())
    for record in written["annotations"][::every]:
        if "image_id" in fields:
            record["image_id"] = names[record["image_id"] - 1]
        if "category_id" in fields:
            record["category_id"] = categories[record["category_id"] - 1]["name"]
    file.write_text(json.dumps(written))
    parts = ("train",) if val_fraction is None else ("train", "val")
    splits = [open_data(folder, part, strict=True, val_fraction=val_fraction) for part in parts]
    read = [
        (each["image_id"], each["category_id"], each["bbox"])
        for part in splits
        for each in part.coco.anns.values()
    ]
    assert sorted(read) == sorted(
        (each["image_id"], each["category_id"], each["bbox"]) for each in plain["annotations"]
    )
    for part in splits:
        said = [note for note in part.notes if "is the name of one of the" in note]
        assert [note.split()[0] for note in said] == list(fields)
