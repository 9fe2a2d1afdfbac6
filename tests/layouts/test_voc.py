"""Pascal VOC's XML, against boxes drawn into the images."""

import re

import pytest
from pycocotools.cocoeval import COCOeval

from autoprune.data.annotations import silence
from autoprune.data.coco import open_data

from .conftest import CLASSES, check, names_of, picture, refused, some_boxes, voc_xml


def make(folder, xml="Annotations", images="JPEGImages", count=4, first=1, start=0, more=""):
    (folder / xml).mkdir(parents=True, exist_ok=True)
    for number, box in enumerate(some_boxes(count, start), start):
        picture(folder / images, f"00{number}.png", box)
        text = voc_xml(f"00{number}.png", box, CLASSES[number % 2], first, more)
        (folder / xml / f"00{number}.xml").write_text(text)


def write_lists(folder, **lists):
    (folder / "ImageSets/Main").mkdir(parents=True, exist_ok=True)
    for name, text in lists.items():
        (folder / f"ImageSets/Main/{name}.txt").write_text(text)


def test_vocs_own_folders(tmp_path):
    make(tmp_path)
    write_lists(tmp_path, train="000\n001\n", val="002\n\n003  1\n", cat_train="000 1\n001 -1\n")
    for split, names in (("train", ["000.png", "001.png"]), ("val", ["002.png", "003.png"])):
        opened = open_data(tmp_path, split, strict=True)
        check(opened, 2)
        assert names_of(opened) == names
        assert list(opened.categories.values()) == list(CLASSES)
    write_lists(tmp_path, val="002\n005\n")
    assert "005.xml" in open_data(tmp_path, "val").skipped[0]


def test_folders_of_years_are_named_and_one_alone_is_read(tmp_path):
    for year in ("VOC2007", "VOC2012"):
        make(tmp_path / year)
        write_lists(tmp_path / year, train="000\n001\n", val="002\n")
    message = refused(tmp_path)
    assert "VOC2007/Annotations" in message
    assert "VOC2012/Annotations" in message
    check(open_data(tmp_path / "VOC2012", "val"), 1)


@pytest.mark.parametrize(("xml", "images"), [("Annotations", "images"), (".", "."), (".", "images")])
def test_without_lists_a_fraction_divides_it(tmp_path, xml, images):
    make(tmp_path, xml, images)
    assert "--val-fraction 0.2" in refused(tmp_path)
    check(open_data(tmp_path, "all", strict=True), 4)
    parts = [names_of(open_data(tmp_path, split, val_fraction=0.5)) for split in ("train", "val")]
    assert sorted(parts[0] + parts[1]) == [f"00{number}.png" for number in range(4)]
    write_lists(tmp_path, trainval="000\n001\n002\n")
    if xml == "Annotations":
        parts = [names_of(open_data(tmp_path, split, val_fraction=0.5)) for split in ("train", "val")]
        assert sorted(parts[0] + parts[1]) == [f"00{number}.png" for number in range(3)]


def test_one_folder_for_each_split(tmp_path):
    for start, split in enumerate(("train", "valid", "test")):
        make(tmp_path, split, split, start=start)
    for split in ("train", "val", "test"):
        check(open_data(tmp_path, split, strict=True), 4)


def test_corners_that_count_from_zero_are_seen_in_the_set_as_a_whole(tmp_path):
    make(tmp_path, first=0)
    write_lists(tmp_path, train="000\n001\n004\n", val="002\n003\n")
    picture(tmp_path / "JPEGImages", "004.png", (0, 5, 10, 10))
    (tmp_path / "Annotations/004.xml").write_text(voc_xml("004.png", (0, 5, 10, 10), "cat", 0))
    for split, count in (("train", 3), ("val", 2)):
        opened = open_data(tmp_path, split, strict=True)
        check(opened, count)
        assert "counted from 0" in opened.notes[0]
        assert opened.notes[1].endswith("labelmap.txt or classes.txt gives one: 1 cat, 2 dog")


def test_a_difficult_object_is_neither_a_hit_nor_a_miss(tmp_path):
    make(tmp_path, count=2, more="<difficult>0</difficult>")
    make(tmp_path, count=2, start=2, more="<difficult> 1 </difficult>")
    write_lists(tmp_path, train="000\n", val="001\n002\n003\n")
    split = open_data(tmp_path, "val", strict=True)
    (difficult,) = split.notes[1:]
    assert difficult == "2 boxes marked `difficult` are ignored: not trained on, and neither hit nor miss"
    assert [len(split.get(index)[1]["boxes"]) for index in range(3)] == [1, 0, 0]
    detections = [
        {
            "image_id": thing["image_id"],
            "category_id": thing["category_id"],
            "bbox": thing["bbox"],
            "score": score,
        }
        for thing, score in zip(split.coco.dataset["annotations"], (0.5, 0.9, 0.8), strict=True)
    ]
    with silence():
        scores = COCOeval(split.coco, split.coco.loadRes(detections), "bbox")
        scores.evaluate()
        scores.accumulate()
        scores.summarize()
    assert scores.stats[0] == pytest.approx(1.0)


def test_the_classes_are_those_of_the_whole_set_in_their_listed_order(tmp_path):
    make(tmp_path)
    write_lists(tmp_path, train="000\n002\n", val="001\n003\n")
    assert open_data(tmp_path, "train").categories == {1: "cat", 2: "dog"}
    (tmp_path / "labelmap.txt").write_text(
        "# label:color_rgb:parts:actions\nbackground:0,0,0::\ndog:1,2,3::\ncat:::\n"
    )
    assert open_data(tmp_path, "train").notes == []
    assert open_data(tmp_path, "val").categories == {1: "dog", 2: "cat"}


BAD = {
    "<annotation><object>": "is not readable XML",
    '<!DOCTYPE a [<!ENTITY x "y">]><annotation>&x;</annotation>': "it declares the entity x",
    '<!DOCTYPE a [<!ENTITY % p SYSTEM "file:///etc/passwd"> %p;]><annotation/>': "it declares the entity p",
}


@pytest.mark.parametrize("text", BAD)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_file_that_is_no_safe_xml_is_left_out_with_its_reason(tmp_path, text, encoding):
    make(tmp_path)
    write_lists(tmp_path, train="000\n", val="001\n002\n")
    (tmp_path / "Annotations/002.xml").write_text(text, encoding=encoding)
    split = open_data(tmp_path, "val")
    assert names_of(split) == ["001.png"]
    assert BAD[text] in split.skipped[0]
    assert "002.xml" in refused(tmp_path, strict=True)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("<name>dog</name>", "", "object 1: it has no name"),
        ("<xmin>", "<x>", "is not readable XML"),
        ("bndbox", "box", "object 1: it has no name, or no bndbox"),
        ("<ymax>", "<ymax>a", "object 1: it has no name, or no bndbox with four numbers"),
    ],
)
def test_an_object_without_a_box_is_left_out_with_its_place(tmp_path, old, new, problem):
    make(tmp_path)
    write_lists(tmp_path, train="000\n", val="001\n002\n")
    file = tmp_path / "Annotations/001.xml"
    file.write_text(file.read_text().replace(old, new))
    split = open_data(tmp_path, "val")
    assert len(split.skipped) == 1
    assert problem in split.skipped[0]
    assert str(file) in split.skipped[0]


def test_parts_of_an_object_are_no_objects_and_sizes_may_be_missing(tmp_path):
    make(tmp_path)
    write_lists(tmp_path, train="000\n", val="001\n")
    file = tmp_path / "Annotations/001.xml"
    corners = "<xmin>9</xmin><ymin>9</ymin><xmax>12</xmax><ymax>12</ymax>"
    part = f"<part><name>head</name><bndbox>{corners}</bndbox></part>"
    text = (
        file.read_text()
        .replace("</object>", part + "</object>")
        .replace("<width>80</width>", "<width>0</width>")
    )
    file.write_text(text.replace("<filename>001.png</filename>", "<filename>renamed.jpg</filename>"))
    split = open_data(tmp_path, "val", strict=True)
    check(split, 1)
    assert list(split.categories.values()) == list(CLASSES)


def test_no_objects_at_all(tmp_path):
    (tmp_path / "Annotations").mkdir()
    (tmp_path / "Annotations/a.xml").write_text("<annotation><size/></annotation>")
    picture(tmp_path / "JPEGImages", "a.png", None)
    assert "no XML file has an object with a name" in refused(tmp_path, "all")


@pytest.mark.parametrize("change", [str.upper, str.title, lambda name: f"voc:{name}"])
def test_names_of_elements_in_any_case_and_with_a_prefix(tmp_path, change):
    make(tmp_path)
    write_lists(tmp_path, train="000\n", val="001\n002\n")
    for file in (tmp_path / "Annotations").glob("*.xml"):
        text = re.sub(r"(</?)(\w+)", lambda match: match[1] + change(match[2]), file.read_text())
        file.write_text(text.replace("<voc:annotation>", '<voc:annotation xmlns:voc="urn:x">'))
    check(open_data(tmp_path, "val", strict=True), 2)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            r"(<object>.*</object>)",
            r"<objects>\1</objects>",
            "1 in all, that are in no object",
        ),
        (r"(</?)object>", r"\1thing>", "1 in all, that are in no object"),
        (r"(<bndbox>.*</bndbox>)", r"\1\1", "object 1 has more than one bndbox"),
    ],
)
def test_a_file_with_boxes_elsewhere_is_left_out(tmp_path, old, new, problem):
    make(tmp_path)
    write_lists(tmp_path, train="000\n", val="001\n002\n")
    file = tmp_path / "Annotations/001.xml"
    file.write_text(re.sub(old, new, file.read_text()))
    split = open_data(tmp_path, "val")
    assert names_of(split) == ["002.png"]
    assert len(split.skipped) == 1
    assert str(file) in split.skipped[0]
    assert problem in split.skipped[0]


def test_numbers_that_are_not_finite_are_none(tmp_path):
    make(tmp_path)
    write_lists(tmp_path, train="000\n", val="001\n")
    file = tmp_path / "Annotations/001.xml"
    file.write_text(file.read_text().replace("<width>80<", "<width>inf<"))
    check(open_data(tmp_path, "val", strict=True), 1)
    file.write_text(re.sub("<xmin>.*</xmin>", "<xmin>nan</xmin>", file.read_text()))
    assert "no bndbox with four numbers" in open_data(tmp_path, "val").skipped[0]


def test_suffixes_in_capitals(tmp_path):
    make(tmp_path)
    write_lists(tmp_path, train="000\n", val="001.xml\n002 1\n")
    for suffix in ("xml", "txt", "png"):
        for file in tmp_path.rglob(f"*.{suffix}"):
            file.rename(file.with_suffix(f".{suffix.upper()}"))
    split = open_data(tmp_path, "val", strict=True)
    check(split, 2)
    assert names_of(split) == ["001.PNG", "002.PNG"]


def test_xml_files_without_an_image_are_counted_whatever_lists_name_them(tmp_path):
    make(tmp_path)
    write_lists(tmp_path, train="000\n", val="001\n002\n")
    (tmp_path / "JPEGImages/002.png").unlink()
    (tmp_path / "Annotations/other.xml").write_text(voc_xml("lost.png", (4, 4, 9, 9), "dog"))
    (tmp_path / "Annotations/named.xml").write_text(voc_xml("000.png", (4, 4, 9, 9), "dog"))
    for name in ("train", "val"):
        notes = open_data(tmp_path, name).notes
        assert f"2 XML files have no image, first {tmp_path}/Annotations/002.xml" in notes
