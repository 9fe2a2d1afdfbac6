"""Pascal VOC that is written in another way: read where that can mean one thing only, else refused."""

import re

import pytest

from autoprune.data.coco import open_data
from autoprune.layouts.voc_xml import CORNERS

from .conftest import check, names_of, refused, some_boxes
from .test_voc import make, write_lists


def rewrite(folder, write, count=30):
    """A set whose corners are written in another way."""
    make(folder, count=count)
    for file in (folder / "Annotations").glob("*.xml"):
        text = file.read_text()
        x1, y1, x2, y2 = (int(re.search(rf"<{name}>(\d+)<", text)[1]) for name in CORNERS)
        for name, value in zip(CORNERS, write(x1, y1, x2, y2), strict=True):
            text = re.sub(rf"<{name}>\d+<", f"<{name}>{value}<", text)
        file.write_text(text)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (
            lambda x1, y1, x2, y2: (x1 / 80, y1 / 60, x2 / 80, y2 / 60),
            "boxes look like fractions of the image",
        ),
        (
            lambda x1, y1, x2, y2: (x1, y1, x2 - x1 + 1, y2 - y1 + 1),
            "bndbox looks like [x, y, width, height]",
        ),
    ],
)
def test_corners_in_another_convention_are_refused(tmp_path, write, message):
    rewrite(tmp_path, write)
    text = refused(tmp_path, "all")
    assert message in text
    assert re.search(r"Annotations/\d+\.xml, object 1", text)


@pytest.mark.parametrize(
    ("text", "classes"),
    [
        ("1: dog\n2: cat\n", ["dog", "cat"]),
        ("2: cat\n1: dog\n", ["dog", "cat"]),
        ("0: background\n1: dog\n2: cat\n", ["dog", "cat"]),
        ("dog\ncat\nbird\n", ["dog", "cat", "bird"]),
        ("dog:1,2,3::\ncat:0,0,0::\n", ["dog", "cat"]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_lists_of_names_in_several_forms(tmp_path, text, classes, encoding):
    make(tmp_path)
    (tmp_path / "labelmap.txt").write_bytes(text.encode(encoding))
    split = open_data(tmp_path, "all", strict=True)
    check(split, 4)
    assert list(split.categories.values()) == classes
    assert split.notes == []


@pytest.mark.parametrize(
    "text",
    [
        "Cat\nDog\n",
        "cat,1\ndog,2\n",
        '["cat", "dog"]\n',
        'item {\n  id: 1\n  name: "cat"\n}\n',
        "cat\nhound\n",
    ],
)
def test_a_list_of_other_names_than_the_boxes_have_is_refused(tmp_path, text):
    make(tmp_path)
    (tmp_path / "labelmap.txt").write_text(text)
    message = refused(tmp_path, "all")
    assert message.startswith(f"{tmp_path}/labelmap.txt lists ")
    assert re.search('which no box has, and boxes have .*"dog".*, which it does not list', message)


def test_classes_that_a_list_lacks_come_last_and_are_named(tmp_path):
    make(tmp_path)
    (tmp_path / "labelmap.txt").write_text("dog\n")
    split = open_data(tmp_path, "all", strict=True)
    assert split.categories == {1: "dog", 2: "cat"}
    assert split.notes == [f'classes that {tmp_path}/labelmap.txt lacks come last: "cat"']


def test_two_lists_or_folders_for_one_split_are_refused(tmp_path):
    make(tmp_path / "one")
    write_lists(tmp_path / "one", train="000\n", val="001\n", valid="002\n")
    assert "val.txt and " in (message := refused(tmp_path / "one"))
    assert message.endswith("valid.txt are both for val; move one of them away")
    for name in ("train", "val", "validation"):
        make(tmp_path / "two", name, name)
    assert "are both for val; move one of them away" in refused(tmp_path / "two")


@pytest.mark.parametrize("first", [b"", b"<html></html>", b"\0\0\0"])
def test_a_broken_first_file_hides_no_layout(tmp_path, first):
    make(tmp_path, ".", ".")
    (tmp_path / "000.xml").write_bytes(first)
    split = open_data(tmp_path, "all")
    assert names_of(split)[-3:] == ["001.png", "002.png", "003.png"]


@pytest.mark.parametrize(("xml", "images"), [("Annotations", "JPEGImages"), (".", ".")])
def test_where_all_files_are_broken_the_first_problem_is_named(tmp_path, xml, images):
    make(tmp_path, xml, images)
    for file in (tmp_path / xml).glob("*.xml"):
        file.write_bytes(b"")
    message = refused(tmp_path, "all")
    assert "none of its 4 XML files can be read (" in message
    assert "000.xml is not readable XML (no element found" in message


def test_a_corner_beyond_the_image_moves_no_other_box(tmp_path):
    make(tmp_path)
    file = tmp_path / "Annotations/000.xml"
    file.write_text(re.sub(r"<xmin>\d+<", "<xmin>-5<", file.read_text()))
    split = open_data(tmp_path, "all", strict=True)
    assert not any("counted from 0" in note for note in split.notes)
    others = [box for number, box in enumerate(some_boxes(4)) if number]
    assert [thing["bbox"] for thing in split.coco.dataset["annotations"]][1:] == [list(box) for box in others]


@pytest.mark.parametrize(("text", "count"), [("no", 4), ("false", 4), ("", 4), ("1", 3), ("Yes", 3)])
def test_difficult_as_tools_write_it(tmp_path, text, count):
    make(tmp_path, more="<difficult>0</difficult>")
    file = tmp_path / "Annotations/001.xml"
    file.write_text(file.read_text().replace("<difficult>0<", f"<difficult>{text}<"))
    split = open_data(tmp_path, "all", strict=True)
    assert sum(len(split.get(index)[1]["boxes"]) for index in range(4)) == count


def test_a_mark_or_size_that_says_nothing_leaves_its_object_or_image_out(tmp_path):
    make(tmp_path, more="<difficult>Unspecified</difficult>", count=1)
    make(tmp_path, start=1)
    file = tmp_path / "Annotations/002.xml"
    file.write_text(file.read_text().replace("<width>80<", "<width>80.7<"))
    split = open_data(tmp_path, "all")
    image, thing = split.skipped
    assert thing.endswith("000.xml, object 1: its `difficult` is neither 0 nor 1") or image.endswith("nor 1")
    assert any("its width 80.7 is no number of pixels" in line for line in split.skipped)
