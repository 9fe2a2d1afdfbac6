"""Images of a COCO file in a folder of any name: found where one folder holds all of them, else refused."""

import json

import pytest

from autoprune.data.coco import open_data

from .conftest import check, coco, names_of, picture, refused, some_boxes, write_json


def make(folder, where, prefix="", first=0):
    """Three pictures in ``where``, and COCO content that names them with a prefix."""
    boxes = some_boxes(3, seed=first)
    names = [f"{number}.png" for number in range(first, first + 3)]
    for name, box in zip(names, boxes, strict=True):
        picture(folder / where, name, box)
    return coco([prefix + name for name in names], boxes)


@pytest.mark.parametrize("prefix", ["", "/home/me/set/", "C:\\set\\", "a/"])
@pytest.mark.parametrize("images", ["photos", "raw/2024/photos", "my photos"])
@pytest.mark.parametrize(
    "file", ["annotations/instances_{}.json", "annotations/{}.json", "{}.json", "{}/_annotations.coco.json"]
)
def test_splits_with_images_in_a_folder_of_any_name(tmp_path, file, images, prefix):
    for first, split in enumerate(("train", "val")):
        content = make(tmp_path, f"{images}/{split}er", prefix, 3 * first)
        write_json(tmp_path / file.format(split), content)
    picture(tmp_path / "photos of others", "0.png", (2, 3, 10, 10))
    for first, split in enumerate(("train", "val")):
        opened = open_data(tmp_path, split, strict=True)
        check(opened, 3)
        assert {path.parent for path in opened.files} == {tmp_path / images / f"{split}er"}
        assert names_of(opened) == [f"{number}.png" for number in range(3 * first, 3 * first + 3)]
        (note,) = opened.notes
        assert note.startswith(f"images are taken from {tmp_path / images / f'{split}er'}, the one folder")


@pytest.mark.parametrize("name", ["mine.json", "annotations/mine.json", "labels/mine.json"])
@pytest.mark.parametrize("images", ["photos", "raw/photos"])
@pytest.mark.parametrize("itself", [True, False])
def test_one_file_with_images_in_a_folder_of_any_name(tmp_path, name, images, itself):
    file = write_json(tmp_path / name, make(tmp_path, images))
    check(open_data(file if itself else tmp_path, "all", strict=True), 3)
    parts = [open_data(file, part, strict=True, val_fraction=0.4) for part in ("train", "val")]
    assert sorted(names_of(parts[0]) + names_of(parts[1])) == ["0.png", "1.png", "2.png"]


def test_several_folders_that_hold_all_are_named(tmp_path):
    content = make(tmp_path, "photos")
    write_json(tmp_path / "annotations/instances_val.json", content)
    make(tmp_path, "copies")
    message = refused(tmp_path)
    assert f"{tmp_path}/copies and {tmp_path}/photos each hold all 3 images" in message
    (tmp_path / "copies/2.png").unlink()
    check(open_data(tmp_path, "val", strict=True), 3)
    (tmp_path / "photos/0.png").unlink()
    write_json(
        tmp_path / "annotations/instances_val.json", content
    )  # what is read is cached by the file's time
    message = refused(tmp_path)
    assert "none of its 3 images can be used" in message
    assert f"no folder below {tmp_path} holds all of them" in message


def test_the_folder_that_has_the_very_names_comes_before_one_that_has_their_ends(tmp_path):
    content = make(tmp_path, "photos/day", "day/")
    write_json(tmp_path / "annotations/instances_val.json", content)
    make(tmp_path, "night")
    assert open_data(tmp_path, "val", strict=True).files[0] == tmp_path / "photos/day/0.png"


def test_expected_folders_come_first_and_links_are_followed_once(tmp_path):
    content = make(tmp_path, "elsewhere/photos")
    write_json(tmp_path / "set/annotations/instances_val.json", content)
    (tmp_path / "set/pictures").symlink_to(tmp_path / "elsewhere/photos")
    (tmp_path / "set/again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere/loop").symlink_to(tmp_path / "set")
    check(open_data(tmp_path / "set", "val", strict=True), 3)
    make(tmp_path, "set/images")
    opened = open_data(tmp_path / "set", "val", strict=True)
    assert {path.parent for path in opened.files} == {tmp_path / "set/images"}
    assert opened.notes == []


def test_folders_that_are_given_are_not_left(tmp_path):
    """With explicit paths nothing is looked for elsewhere."""
    from autoprune.config import make_config

    file = write_json(tmp_path / "a.json", make(tmp_path, "photos"))
    (tmp_path / "empty").mkdir()
    paths = {"annotations": str(file), "images": str(tmp_path / "empty")}
    data = make_config(data={"train": paths, "val": paths}).data
    assert "none of its 3 images can be used" in refused(data, "val")
    assert json.loads(file.read_text())["images"][0]["file_name"] == "0.png"
