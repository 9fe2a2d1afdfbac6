"""What is said of a data set before anything is run on it."""

import shutil
from pathlib import Path

import pytest

from autoprune.data.survey import box_counts, survey
from autoprune.errors import DataError

from ..layouts.conftest import picture, voc_xml
from .conftest import box, edit, write_set

TWO = [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}]


def test_a_set_without_fault_has_nothing_odd(tmp_path):
    for seed, split in enumerate(("train", "val")):
        names = (f"{split}a.png", f"{split}b.png")
        boxes = [box(1, 1), box(2, 1, category=2), box(3, 2, category=2)]
        write_set(tmp_path, boxes, split, names, size=(30 + seed, 40), categories=TWO)
    overview = survey(tmp_path)
    assert overview.layout == f"COCO ({tmp_path}/annotations/instances_train.json)"
    assert overview.odd == ()
    assert list(overview.splits) == ["train", "val"]
    assert box_counts(overview.splits["val"]) == {"cat": 1, "dog": 2}


def test_what_is_odd_is_said(tmp_path):
    boxes = [box(1, 1), box(2, 1, iscrowd=1), box(3, 1, (0, 0, 0, 0))]
    write_set(tmp_path, boxes, "train", ("a.png", "b.png", "c.png"), categories=TWO)
    write_set(
        tmp_path, [box(1, 1), box(2, 1, category=2), box(3, 2)], "val", ("d.png", "e.png"), categories=TWO
    )
    shutil.copy(tmp_path / "images/a.png", tmp_path / "images/e.png")
    shutil.copy(tmp_path / "images/b.png", tmp_path / "images/extra.png")
    text = "\n".join(survey(tmp_path).odd)
    for line in (
        "train: left out as unusable, 1 in all: annotation 3 (a.png): its box",
        "train: crowds, 1 of 2 boxes",
        "train: no box of dog",
        "train: no boxes in 2 of 3 images",
        "the same images in train and val: 2, such as a.png and ",
        "in no split, but beside its images: 1, such as",
    ):
        assert line in text
    edit(tmp_path, lambda content: content["categories"][1].update(name="wolf"))
    assert "val and train have different classes" in survey(tmp_path).odd


def test_a_test_split_that_is_broken_does_not_hide_the_others(tmp_path):
    for split in ("train", "val", "test"):
        write_set(tmp_path, [box(1, 1)], split)
    (tmp_path / "annotations/instances_test.json").write_text("{")
    overview = survey(tmp_path)
    assert list(overview.splits) == ["train", "val"]
    assert "test can't be read: " in overview.odd[0]
    (tmp_path / "annotations/instances_val.json").write_text("{")
    with pytest.raises(DataError, match="not in COCO format"):
        survey(tmp_path)


def test_splits_that_are_all_broken_are_refused_by_name(tmp_path):
    for split in ("a", "b"):
        write_set(tmp_path, [box(1, 1)], split)
        (tmp_path / f"annotations/instances_{split}.json").write_text("{")
    with pytest.raises(DataError, match=r"a can't be read: .*; b can't be read: "):
        survey(tmp_path)


def test_a_fraction_is_a_split(tmp_path):
    write_set(tmp_path, [box(1, 1)], "train", tuple(f"{number}.png" for number in range(6)))
    assert list(survey(tmp_path).splits) == ["train"]
    overview = survey(tmp_path, 0.5)
    assert list(overview.splits) == ["train", "val"]
    assert sum(map(len, overview.splits.values())) == 6


def test_what_holds_for_several_splits_is_said_once(tmp_path):
    """Of Pascal VOC, whose classes are those of all splits; a set that is not divided names no split."""
    (tmp_path / "Annotations").mkdir()
    for number in range(4):
        picture(tmp_path / "JPEGImages", f"{number}.png", (3, 4, 10, 10))
        text = voc_xml(
            f"{number}.png", (3, 4, 10, 10), "dog", more="<difficult>1</difficult>" * (number == 3)
        )
        (tmp_path / f"Annotations/{number}.xml").write_text(text)
    text = "classes in the order of the alphabet, as no labelmap.txt or classes.txt gives one: 1 dog"
    assert text in survey(tmp_path).odd
    assert not [line for line in survey(tmp_path).odd if line.startswith("all")]
    (tmp_path / "ImageSets/Main").mkdir(parents=True)
    for split, names in (("train", "0 1"), ("val", "2 3")):
        (tmp_path / f"ImageSets/Main/{split}.txt").write_text(names.replace(" ", "\n"))
    odd = survey(tmp_path).odd
    assert [line for line in odd if text in line] == [f"train, val: {text}"]
    assert len([line for line in odd if line.startswith("val: crowds, 1 of 2")]) == 1


def test_damaged_images_are_named(tmp_path):
    write_set(tmp_path, [box(1, 1)], "train", tuple(f"{number}.png" for number in range(4)))
    file = tmp_path / "images/2.png"
    file.write_bytes(file.read_bytes()[:-900])
    (line,) = [line for line in survey(tmp_path).odd if "damaged" in line]
    assert line.startswith(f"train: damaged: 1 of 4 images, first: cannot decode {file}: ")


def test_images_are_the_same_by_whatever_path_they_are_named(tmp_path, monkeypatch):
    names = tuple(f"{number}.png" for number in range(4))
    write_set(tmp_path / "set", [box(1, 1)], "val", names)
    forms = (str(tmp_path / "set/images/0.png"), "C:\\mine\\1.png", "https://host/a/2.png", "../images/3.png")

    def rename(content):
        for record, form in zip(content["images"], forms, strict=True):
            record["file_name"] = form

    edit(tmp_path / "set", rename)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "set")
    for folder in ("set", "link"):
        overview = survey(Path(folder))
        assert len(overview.splits["val"]) == 4
        assert not [line for line in overview.odd if "beside its images" in line]


def test_one_name_is_shown_once(tmp_path):
    for split in ("train", "val"):
        write_set(tmp_path, [box(1, 1)], split)
    odd = survey(tmp_path).odd
    assert "the same images in train and val: 2, such as a.png" in odd
