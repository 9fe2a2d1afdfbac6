"""What stands where a label file should: an image is left out where it is not known what it shows."""

import os
from glob import glob

import pytest

from autoprune.data.coco import open_data

from .conftest import check, names_of, picture, refused, some_boxes, yolo_line
from .test_yolo import both, write_yaml


def to_folder(file):
    file.mkdir()


def to_lost_link(file):
    file.symlink_to("/nowhere/at/all.txt")


def to_utf16(file):
    file.write_bytes(yolo_line(0, (3, 4, 10, 10)).encode("utf-16-le"))


def to_zeros(file):
    file.write_bytes(bytes(200))


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "it is a device or pipe"),
        (to_folder, "it is a folder"),
        (to_lost_link, "it is a link to nothing"),
        (to_utf16, "is no UTF-8 text: byte 1 is 0x00"),
        (to_zeros, "is no UTF-8 text: byte 0 is 0x00"),
    ],
)
def test_an_image_whose_labels_cannot_be_read_is_left_out(tmp_path, make, problem):
    both(tmp_path)
    write_yaml(tmp_path)
    file = tmp_path / "labels/val/1.txt"
    file.unlink()
    make(file)
    split = open_data(tmp_path, "val")
    assert names_of(split) == ["0.png", "2.png"]
    (line,) = split.skipped
    assert line.startswith(f"image {tmp_path}/images/val/1.png: its label file {file} can't be read: ")
    assert problem in line
    assert "1.png" in refused(tmp_path, strict=True)


def test_labels_in_utf16_with_its_mark_are_read(tmp_path):
    both(tmp_path)
    write_yaml(tmp_path)
    for file in (tmp_path / "labels").rglob("*.txt"):
        file.write_bytes(file.read_text().encode("utf-16"))
    check(open_data(tmp_path, "val", strict=True), 3)


def test_two_images_of_one_label_file_are_named(tmp_path):
    both(tmp_path)
    write_yaml(tmp_path)
    picture(tmp_path / "images/val", "1.bmp", some_boxes(3, 1)[1])
    split = open_data(tmp_path, "val", strict=True)
    check(split, 4)
    assert split.notes == [
        f"1 label files are read for several images each, first "
        f"{tmp_path}/labels/val/1.txt for 1.bmp and 1.png"
    ]


def test_two_places_for_one_split_are_refused(tmp_path):
    both(tmp_path, splits=("train", "val", "valid"))
    (tmp_path / "data.yaml").write_text(
        "train: images/train\nval: images/val\nvalid: images/valid\nnames: [cat, dog]\n"
    )
    assert refused(tmp_path).endswith("data.yaml: `val` and `valid` are both for val; move one of them away")
    (tmp_path / "data.yaml").unlink()
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    message = refused(tmp_path)
    assert message.endswith(
        "images/val and " + f"{tmp_path}/images/valid are both for val; move one of them away"
    )
    for file in (tmp_path / "images/valid").iterdir():
        file.unlink()
    check(open_data(tmp_path, "val", strict=True), 3)


def test_a_lost_image_of_a_list_is_named_once(tmp_path):
    both(tmp_path)
    (tmp_path / "val.txt").write_text("images/val/0.png\nimages/val/lost.png\nimages/val/2.png\n")
    write_yaml(tmp_path, "val.txt")
    split = open_data(tmp_path, "val")
    assert names_of(split) == ["0.png", "2.png"]
    assert split.skipped == [f"image images/val/lost.png: there is no file {tmp_path}/images/val/lost.png"]
    assert split.notes == []


def test_what_is_no_image_of_a_list_is_named(tmp_path):
    both(tmp_path)
    os.mkfifo(tmp_path / "images/val/pipe.png")
    (tmp_path / "val.txt").write_text("images/val/0.png\nimages/val/pipe.png\n")
    write_yaml(tmp_path, "val.txt")
    split = open_data(tmp_path, "val")
    place = tmp_path / "images/val/pipe.png"
    assert split.skipped == [f"image images/val/pipe.png: {place} is no image: it is a device or pipe"]


def test_folders_are_looked_into_as_by_ultralytics_over_links_and_not_if_hidden(tmp_path):
    data, elsewhere = tmp_path / "data", tmp_path / "elsewhere"
    both(data)
    write_yaml(data)
    for place, boxes in ((elsewhere, some_boxes(2, 7)), (data, some_boxes(2, 8))):
        inner = "." if place is elsewhere else "val/.checkpoints"
        for number, box in enumerate(boxes):
            picture(place / "images" / inner, f"more{number}.png", box)
            (place / "labels" / inner).mkdir(parents=True, exist_ok=True)
            (place / "labels" / inner / f"more{number}.txt").write_text(yolo_line(0, box))
    for kind in ("images", "labels"):
        (data / kind / "val/linked").symlink_to(elsewhere / kind)
        (elsewhere / kind / "back").symlink_to(data / kind / "val")  # a circle
    (elsewhere / "labels/lost.txt").write_text(yolo_line(0, (3, 4, 10, 10)))
    split = open_data(data, "val")
    theirs = {os.path.realpath(file) for file in glob(f"{data}/images/val/**/*.*", recursive=True)}
    assert {os.path.realpath(file) for file in split.files} == theirs
    assert len(split) == len(split.coco.anns) == 5
    (line,) = split.skipped
    assert line.startswith(f"{data}/labels/val/linked/lost.txt: there is no image lost.* for it")
