"""Where annotation files are looked for, and what can be used of them."""

import json

import pytest
from PIL import Image

from autoprune.data.annotations import read_source
from autoprune.data.coco import open_data
from autoprune.errors import DataError
from autoprune.fields import DataPaths, SplitPaths
from autoprune.layouts.source import Source

from .conftest import ONE, box, drawing, edit, one_line, save_turned, write_set

CAT, OTHER = '{"id": 1, "name": "a"}', '{"id": 1, "name": "b"}'


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("instances_val.json", "images"),
        ("instances_val.json", "images/val"),
        ("instances_val.json", "val"),
        ("instances_val2017.json", "val2017"),
        ("instances_val2017.json", "images/val2017"),
        ("instances_val2014.json", "val2014"),
    ],
)
def test_layouts(tmp_path, file, folder):
    made = write_set(tmp_path / "made", [box(1, 1)])
    (tmp_path / "set" / folder).parent.mkdir(parents=True, exist_ok=True)
    (made / "images").rename(tmp_path / "set" / folder)
    (tmp_path / "set/annotations").mkdir()
    (made / "annotations/instances_val.json").rename(tmp_path / "set/annotations" / file)
    assert len(open_data(tmp_path / "set", "val", strict=True)) == 2


def test_explicit_paths(tmp_path):
    folder = write_set(tmp_path, [box(1, 1)])
    paths = SplitPaths(annotations=folder / "annotations/instances_val.json", images=folder / "images")
    data = DataPaths(train=paths, val=paths)
    assert len(open_data(data, "train")) == len(open_data(data, "val")) == 2
    with pytest.raises(DataError, match="the splits train, val, and no 'test'; add that to data"):
        open_data(data, "test")
    assert len(open_data(DataPaths(train=paths, val=paths, test=paths), "test")) == 2
    lost = DataPaths(train=SplitPaths(annotations=paths.annotations, images=tmp_path / "lost"), val=paths)
    with pytest.raises(DataError, match=r"lost does not exist; check data\.train"):
        open_data(lost, "train")


def test_subfolders_unicode_and_shared_files(tmp_path):
    names = ("Zäune 画像.png", "b.png")
    folder = write_set(
        tmp_path, [box(1, 1), box(2, 2), box(3, 9)], names=names, categories=[{"id": 1, "name": "猫"}]
    )
    (folder / "images/sub").mkdir()
    (folder / "images/b.png").rename(folder / "images/sub/b.png")

    def change(content):
        content["images"][1]["file_name"] = "sub/b.png"
        content["images"].append({"id": 9, "file_name": names[0]})  # no size, and a file that is used already

    edit(folder, change)
    split = open_data(folder, "val", strict=True)
    assert split.categories == {1: "猫"}
    assert split.stored_sizes == [(30, 40)] * 2
    assert split.notes == [
        f"images listed twice are one, with the boxes of both: 1, first {names[0]}, ids 1 and 9",
        f"boxes listed twice count once: 1, first annotation 3 ({names[0]})",
    ]


@pytest.mark.parametrize("name", ["a.png", "./a.png", "images\\a.png"])
def test_an_image_under_two_ids_has_the_boxes_of_both(tmp_path, name):
    folder = write_set(tmp_path, [box(1, 1), box(2, 2), box(3, 9, (20, 4, 5, 6)), box(4, 9, (1, 1, 3, 3))])
    edit(
        folder,
        lambda content: content["images"].append({"id": 9, "file_name": name, "height": 30, "width": 40}),
    )
    split = open_data(folder, "val", strict=True)
    assert split.image_ids == [1, 2]
    assert [thing["bbox"] for thing in split.coco.imgToAnns[1]] == [
        [2, 3, 10, 8],
        [20, 4, 5, 6],
        [1, 1, 3, 3],
    ]
    assert len(split.coco.imgToAnns[2]) == 1
    edit(folder, lambda content: content["images"][2].update(width=41))
    split = open_data(folder, "val")
    assert len(split.skipped) == 3
    assert "it is 40x30 pixels, the annotations say 41x30" in split.skipped[0]
    with pytest.raises(DataError, match="41x30"):
        open_data(folder, "val", strict=True)


def test_a_turned_image_listed_in_both_sizes_is_taken_once(tmp_path):
    folder = write_set(tmp_path, [box(1, 1), box(2, 2), box(3, 9)])
    save_turned(folder / "images/a.png", drawing((30, 40)), 6)  # upright 40x30, stored 30x40
    edit(
        folder,
        lambda content: content["images"].append({"id": 9, "file_name": "a.png", "height": 40, "width": 30}),
    )
    split = open_data(folder, "val")
    assert split.image_ids == [1, 2]
    assert "image a.png: it is listed twice, first as 40x30; keep the right one" in split.skipped


def test_boxes_listed_twice_count_once_and_leave_the_fingerprint(tmp_path):
    once = [box(1, 1), box(2, 2), box(3, 1, iscrowd=1), box(4, 1, (2, 3, 10, 9)), box(5, 1, category=2)]
    two = [{"id": 1, "name": "thing"}, {"id": 2, "name": "other"}]
    clean = open_data(write_set(tmp_path / "once", once, categories=two), "val", strict=True)
    assert clean.notes == []
    assert len(clean.coco.anns) == 5
    again = [{**each, "id": each["id"] + 10, "bbox": [str(side) for side in each["bbox"]]} for each in once]
    twice = open_data(write_set(tmp_path / "twice", once + again, categories=two), "val", strict=True)
    assert twice.notes == ["boxes listed twice count once: 5, first annotation 11 (a.png)"]
    assert twice.fingerprint == clean.fingerprint


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (box(7, 1, (2, 3, 0, 5)), "annotation 7 (a.png): its box [2, 3, 0, 5] has no area"),
        (box(7, 1, (2, 3, 5, -1)), "has no area"),
        (box(7, 1, (50, 3, 5, 5)), "lies outside the image (40x30)"),
        (box(7, 1, (-9, 3, 5, 5)), "lies outside the image"),
        (box(7, 1, category=8), "annotation 7 (a.png): its category 8 is unknown"),
        (box(7, 5), "annotation 7 (no image): its image 5 is missing"),
        (box(7, 1, (1, 2, 3)), "is not [x, y, width, height]"),
        (box(7, 1, (1, 2, 3, None)), "is not [x, y, width, height]"),
        (box(7, 1, (1, 2, 3, float("nan"))), "is not [x, y, width, height]"),
        (box(7, 1, ("wide", 2, 3, 4)), "is not [x, y, width, height]"),
        ({"id": 7, "image_id": 1, "category_id": 1}, "is not [x, y, width, height]"),
    ],
)
def test_unusable_annotations_are_listed_and_strict_refuses_them(tmp_path, wrong, message):
    folder = write_set(tmp_path, [box(1, 1), wrong, box(2, 2)])
    split = open_data(folder, "val")
    assert len(split.skipped) == 1
    assert message in split.skipped[0]
    assert [len(split.get(index)[1]["labels"]) for index in range(2)] == [1, 1]
    assert len(split.coco.anns) == 2
    with pytest.raises(DataError) as error:
        open_data(folder, "val", strict=True)
    assert message in one_line(error)
    assert "1 entry" in one_line(error)


def test_a_missing_image_is_skipped_with_its_boxes_and_strict_names_it(tmp_path):
    folder = write_set(tmp_path, [box(1, 1), box(2, 2), box(3, 2)])
    (folder / "images/b.png").unlink()
    split = open_data(folder, "val")
    assert split.image_ids == [1]
    assert len(split.skipped) == 3
    assert str(folder / "images/b.png") in split.skipped[0]
    with pytest.raises(DataError, match=r"b\.png"):
        open_data(folder, "val", strict=True)
    (folder / "images/a.png").unlink()
    edit(folder, lambda content: None)
    with pytest.raises(DataError, match="none of its 2 images can be used") as error:
        open_data(folder, "val")
    assert str(folder / "images") in one_line(error)


def test_images_that_are_no_images_or_of_another_size_are_skipped(tmp_path):
    folder = write_set(tmp_path, [], names=("a.png", "b.png", "c.png", "d.png"))
    (folder / "images/b.png").write_text("not a picture")
    Image.new("RGB", (20, 20)).save(folder / "images/c.png")
    edit(folder, lambda content: content["images"].append({"id": 1, "file_name": "d.png"}))
    edit(folder, lambda content: content["images"].append({"id": 9}))
    split = open_data(folder, "val")
    assert split.image_ids == [1, 4]
    text = "; ".join(split.skipped)
    assert "b.png is not a readable image" in text
    assert "it is 20x20 pixels, the annotations say 40x30" in text
    assert "its id 1 is taken by a.png" in text
    assert "needs an id and a file_name" in text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not in COCO format"),
        ("[1, 2]", "not in COCO format"),
        ("3", "not in COCO format"),
        ("{}", "no list `images`"),
        ('{"images": [], "annotations": {}, "categories": []}', "not in COCO format"),
        ('{"images": {}, "annotations": [], "categories": []}', "not in COCO format"),
        ('{"images": [], "annotations": [], "categories": []}', "lists no categories"),
        ('{"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}]}', "no images"),
        ('{"images": [], "annotations": [], "categories": [{"id": null, "name": "a"}]}', "needs an id"),
        (f'{{"images": [], "annotations": [], "categories": [{CAT}, {OTHER}]}}', "two categories"),
        (
            '{"images": [], "annotations": [{"id": 1, "caption": "x"}], "categories": []}',
            "lists no categories",
        ),
        ('{"images": [{"id": [1]}], "annotations": [], "categories": []}', "lists no categories"),
        (b"\xff\xfe\x00\x01", "not in COCO format"),
    ],
)
def test_json_that_is_not_coco_is_refused_in_one_line(tmp_path, content, message):
    folder = write_set(tmp_path, [])
    file = folder / "annotations/instances_val.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError) as error:
        open_data(folder, "val")
    assert message in one_line(error)
    assert str(file) in one_line(error)


def test_missing_folders_name_flag_field_and_demo(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "half/annotations").mkdir(parents=True)
    (tmp_path / "half/annotations/instances_val.json").write_text(
        json.dumps({"images": [{"id": 1, "file_name": "a.png"}], "annotations": [], "categories": ONE})
    )
    for name, message in (
        ("lost", "no data folder"),
        ("empty", "no annotations/instances_val.json"),
        ("half", "no folder below"),
    ):
        with pytest.raises(DataError) as error:
            open_data(tmp_path / name, "val")
        for part in (message, "--data", "YAML: data", "autoprune demo"):
            assert part in one_line(error)


def test_pycocotools_prints_nothing(tmp_path, capsys):
    open_data(write_set(tmp_path, [box(1, 1)]), "val").get(0)
    assert capsys.readouterr() == ("", "")


def test_a_changed_annotation_file_is_read_again(tmp_path):
    folder = write_set(tmp_path, [box(1, 1)])
    source = Source(folder / "annotations/instances_val.json", (folder / "images",))
    first = read_source(source)
    assert read_source(source) is first
    edit(folder, lambda content: content["annotations"].clear())
    assert read_source(source).coco.anns == {}


def test_two_categories_of_one_name_with_boxes_are_refused(tmp_path):
    two = [{"id": 1, "name": "thing"}, {"id": 4, "name": "thing "}]
    folder = write_set(tmp_path, [box(1, 1), box(2, 2)], categories=two)
    assert len(open_data(folder, "val").coco.anns) == 2
    write_set(tmp_path, [box(1, 1), box(2, 2, category=4)], categories=two)
    with pytest.raises(DataError) as error:
        open_data(folder, "val")
    assert 'the categories 1 and 4 are both named "thing" and both have boxes' in one_line(error)
