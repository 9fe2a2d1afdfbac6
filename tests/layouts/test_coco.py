"""COCO JSON files where each tool writes them."""

import shutil

import pytest

from autoprune.data.coco import open_data
from autoprune.layouts.find import find_layout

from .conftest import check, coco, picture, refused, some_boxes, write_json


def make(folder, where, prefix=""):
    """Three pictures in ``where``, and COCO content that names them with a prefix."""
    boxes = some_boxes(3, seed=len(str(where)))
    names = [f"{number}.png" for number in range(3)]
    for name, box in zip(names, boxes, strict=True):
        picture(folder / where, name, box)
    return coco([prefix + name for name in names], boxes)


@pytest.mark.parametrize(
    ("annotations", "images", "prefix"),
    [
        ("{}/_annotations.coco.json", "{}", ""),  # Roboflow
        ("{}/labels.json", "{}/data", ""),  # FiftyOne
        ("{}/result.json", "{}/images", "images/"),  # Label Studio, one export a split
        ("annotations/instances_{}.json", "images/{}", ""),  # CVAT, with subsets
        ("annotations/{}.json", "{}", ""),
        ("{}.json", "images", ""),
        ("{}.json", ".", ""),
    ],
)
@pytest.mark.parametrize("val", ["val", "valid", "Validation"])
def test_a_folder_or_file_for_each_split(tmp_path, annotations, images, prefix, val):
    for split in ("train", val, "test"):
        content = make(tmp_path, images.format(split), prefix)
        write_json(tmp_path / annotations.format(split), content)
    for split in ("train", "val", "test"):
        check(open_data(tmp_path, split, strict=True), 3)


@pytest.mark.parametrize(
    ("annotations", "images", "prefix"),
    [
        ("annotations/instances_default.json", "images", ""),  # CVAT
        ("annotations/instances_default.json", "images/default", ""),
        ("result.json", "images", "images/"),  # Label Studio
        ("result.json", "images", "images\\"),
        ("result.json", "images", "/data/local-files/?d=project/"),
        ("result.json", "images", "../../label-studio/data/media/upload/1/"),
        ("labels.json", "data", ""),  # FiftyOne
        ("_annotations.coco.json", ".", ""),
    ],
)
def test_one_file_is_refused_with_what_divides_it(tmp_path, annotations, images, prefix):
    write_json(tmp_path / annotations, make(tmp_path, images, prefix))
    for split in ("train", "val"):
        assert "--val-fraction 0.2 (YAML: val_fraction) divides it" in refused(tmp_path, split)
    check(open_data(tmp_path, "all", strict=True), 3)
    parts = [open_data(tmp_path, split, strict=True, val_fraction=0.4) for split in ("train", "val")]
    assert sorted(path.name for part in parts for path in part.files) == ["0.png", "1.png", "2.png"]
    for part in parts:
        check(part, len(part))


def test_the_json_file_itself(tmp_path):
    file = write_json(tmp_path / "labels/mine.json", make(tmp_path, "labels/images"))
    check(open_data(file, "all"), 3)
    beside = write_json(tmp_path / "other/annotations/instances_x.json", make(tmp_path, "other/images"))
    check(open_data(beside, "all"), 3)
    assert "--split all" in refused(file)
    (tmp_path / "notes.txt").write_text("")
    assert "neither a folder, a COCO .json file nor a YOLO data.yaml" in refused(tmp_path / "notes.txt")


def test_a_set_in_one_more_folder_as_archives_are_unpacked(tmp_path):
    for split in ("train", "valid"):
        write_json(
            tmp_path / f"My.v1.coco/{split}/_annotations.coco.json", make(tmp_path, f"My.v1.coco/{split}")
        )
    check(open_data(tmp_path, "val"), 3)


def test_several_readings_are_named(tmp_path):
    for split in ("train", "valid"):
        write_json(tmp_path / f"{split}/_annotations.coco.json", make(tmp_path, split))
    write_json(tmp_path / "annotations/instances_train.json", make(tmp_path, "images"))
    message = refused(tmp_path)
    assert "annotations/instances_train.json" in message
    assert "_annotations.coco.json" in message
    assert "has no validation split: it has train" in refused(tmp_path / "annotations")
    shutil.copytree(tmp_path / "valid", tmp_path / "val")
    assert "are both for val; move one of them away" in refused(tmp_path)


def test_years_are_tried_in_their_order(tmp_path):
    for suffix in ("", "2014", "2017"):
        content = make(tmp_path, f"images/val{suffix}")
        content["info"] = suffix
        write_json(tmp_path / f"annotations/instances_val{suffix}.json", content)
    message = refused(tmp_path)
    assert "annotations/instances_val.json and " in message
    assert message.endswith("instances_val2017.json are both for val; move one of them away")
    (tmp_path / "annotations/instances_val.json").unlink()
    assert open_data(tmp_path, "val").files[0].parent.name == "val2017"
    (tmp_path / "annotations/instances_val2014.json").unlink()
    copy = (tmp_path / "annotations/instances_val2017.json").read_bytes()
    (tmp_path / "annotations/instances_val.json").write_bytes(copy)  # the same under another name
    assert open_data(tmp_path, "val").files[0].parent.name == "val"


@pytest.mark.parametrize("name", ["annotations.json", "annotations/mine.JSON", "my set.json"])
@pytest.mark.parametrize("images", ["images", "."])
def test_one_file_of_any_name_is_a_set_that_is_not_divided(tmp_path, name, images):
    content = make(tmp_path, images)
    write_json(tmp_path / "package.json", {"images": [], "name": "no data set"})
    (tmp_path / "broken.json").write_text("{")
    assert "no other layout" in refused(tmp_path, "all")
    write_json(tmp_path / name, content)
    check(open_data(tmp_path, "all", strict=True), 3)
    assert f"(COCO JSON file: {name}) is not divided into train and val" in refused(tmp_path)
    assert sum(len(open_data(tmp_path, part, val_fraction=0.4)) for part in ("train", "val")) == 3
    write_json(tmp_path / "other.json", content)
    message = refused(tmp_path, "all")
    assert f"has several COCO files, {tmp_path}/" in message
    assert str(tmp_path / name) in message
    assert f"--data {tmp_path}/" in message


def test_a_file_without_images_is_no_set(tmp_path):
    write_json(tmp_path / "annotations.json", coco(["a.png"], some_boxes(1)))
    assert "no other layout" in refused(tmp_path, "all")


@pytest.mark.parametrize("where", ["annotations/instances_{}.json", "{}/_annotations.coco.json"])
def test_the_file_of_the_training_split_shows_the_layout(tmp_path, where):
    for split in ("val", "test", "train"):
        write_json(tmp_path / where.format(split), make(tmp_path, f"images/{split}"))
    assert find_layout(tmp_path).evidence == tmp_path / where.format("train")
    (tmp_path / where.format("train")).unlink()
    assert find_layout(tmp_path).evidence == tmp_path / where.format("val")


@pytest.mark.parametrize(
    ("annotations", "images"),
    [
        ("annotations/instances_{}.JSON", "images/{}"),
        ("{}.Json", "{}"),
        ("{}/_annotations.coco.JSON", "{}"),
        ("{}/labels.JSON", "{}/data"),
    ],
)
def test_suffixes_in_capitals(tmp_path, annotations, images):
    for split in ("train", "val"):
        write_json(tmp_path / annotations.format(split), make(tmp_path, images.format(split)))
    check(open_data(tmp_path, "val", strict=True), 3)
