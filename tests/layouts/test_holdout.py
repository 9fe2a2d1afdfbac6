"""Which images a hash of their names sets aside for validation."""

from hashlib import sha256

import pytest

from autoprune.data.coco import open_data
from autoprune.errors import DataError
from autoprune.layouts.holdout import held_out, in_part, name_hash
from autoprune.layouts.source import Part

from .conftest import coco, names_of, picture, refused, some_boxes, write_json


def content_of(names):
    return coco(names, some_boxes(len(names)))


def names_in(names, part, fraction):
    chosen = in_part([(name, name) for name in names], Part(part, fraction))
    return {name for name, is_chosen in zip(names, chosen, strict=True) if is_chosen}


def test_an_image_stays_where_it_is_when_others_come_or_the_fraction_grows():
    names = [f"img_{number}.jpg" for number in range(400)]
    few, many = names[:200], names
    val = names_in(few, "val", 0.2)
    assert 20 < len(val) < 60  # 40 expected
    assert names_in(many, "val", 0.2) & {*names[:200]} == val
    assert val < names_in(few, "val", 0.4)
    assert names_in(few, "train", 0.2) == {*names[:200]} - val
    assert val == {
        name for name in names[:200] if int(sha256(name.encode()).hexdigest()[:14], 16) / 2**56 < 0.2
    }


@pytest.mark.parametrize("write", [int, float, str, lambda number: f"{number:06d}"])
def test_annotations_go_with_their_image_and_strays_with_both_parts(tmp_path, write):
    names = [f"{number}.png" for number in range(12)]
    content = content_of(names)
    for name in names:
        picture(tmp_path / "images", name, (2, 3, 10, 10))
    for record in content["annotations"]:
        record["image_id"] = write(record["image_id"])
    content["annotations"].append({"id": 99, "image_id": 1000, "category_id": 1, "bbox": [1, 1, 5, 5]})
    content["annotations"].append({"id": 100, "category_id": 1, "bbox": [1, 1, 5, 5]})
    file = write_json(tmp_path / "set.json", content)
    parts = [open_data(file, name, val_fraction=0.5) for name in ("train", "val")]
    for part in parts:
        assert {thing["image_id"] for thing in part.coco.anns.values()} == {*part.image_ids}
        assert [line.split(":")[0] for line in part.skipped] == [
            "annotation 99 (no image)",
            "annotation 100 (no image)",
        ]
    assert sorted(names_of(parts[0]) + names_of(parts[1])) == sorted(names)


@pytest.mark.parametrize("reverse", [False, True])
def test_an_image_of_several_names_is_in_one_part(tmp_path, reverse):
    """Every picture is listed by its own name, by two longer ones, and by that of a link to it."""
    names = [f"{number}.png" for number in range(16)]
    for name in names:
        picture(tmp_path / "images", name, (2, 3, 10, 10))
        (tmp_path / "images" / f"link_{name}").symlink_to(name)
    spelled = [form.format(name) for name in names for form in ("{}", "images/{}", "/mnt/a/{}", "link_{}")]
    content = content_of(spelled[::-1] if reverse else spelled)
    file = write_json(tmp_path / "set.json", content)
    train, val = (open_data(file, name, val_fraction=0.4) for name in ("train", "val"))
    files = [{path.resolve() for path in part.files} for part in (train, val)]
    assert not files[0] & files[1]
    assert len(files[0] | files[1]) == 16
    assert {path.name for path in files[1]} == {
        name
        for name in names
        if min(
            int(sha256(form.encode()).hexdigest()[:14], 16) / 2**56
            for form in (name, f"images/{name}", f"link_{name}")
        )
        < 0.4
    }


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
