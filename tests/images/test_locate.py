"""Files of image records, and whether boxes are in upright or in stored pixels."""

import os

import pytest

from autoprune.data.coco import open_data
from autoprune.errors import DataError
from autoprune.images.decode import read_header

from ..data.conftest import BOX, box, drawing, edit, one_line, save_turned, shown, turned, write_set


def make(folder, orientations, size, sized, as_stored=False, split="val"):
    """Pictures of these orientations, one box each: upright, or where it lies among the stored pixels.

    ``sized``: ``upright``, ``stored`` or ``None``, for each picture.
    """
    drawn = drawing(size)
    names = tuple(f"{split}_{number}.jpg" for number in range(len(orientations)))
    boxes, sizes = [], []
    for number, orientation in enumerate(orientations, 1):
        stored = turned(drawn, orientation)
        boxes.append(box(number, number, shown(stored.transpose(2, 0, 1)) if as_stored else BOX))
        sizes.append({"upright": size, "stored": stored.shape[:2], None: None}[sized[number - 1]])
    write_set(folder, boxes, split, names)
    for name, orientation in zip(names, orientations, strict=True):
        save_turned(folder / "images" / name, drawn, orientation)

    def change(content):
        for image, given in zip(content["images"], sizes, strict=True):
            image.update(dict(zip(("height", "width"), given or (None, -1), strict=True)))

    edit(folder, change) if split == "val" else None
    return folder


def check(folder, count):
    split = open_data(folder, "val", strict=True)
    assert len(split) == count
    for index in range(count):
        pixels, target = split.get(index)
        x1, y1, x2, y2 = target["boxes"][0].tolist()
        assert [x1, y1, x2 - x1, y2 - y1] == shown(pixels)
        assert tuple(pixels.shape[1:]) == split.stored_sizes[index]
    return split


ALL = tuple(range(1, 9))


@pytest.mark.parametrize("size", [(30, 40), (40, 40)])
@pytest.mark.parametrize("sized", ["upright", None])
def test_upright_where_sizes_say_so_or_nothing(tmp_path, size, sized):
    split = check(make(tmp_path, ALL, size, [sized] * 8), 8)
    assert split.notes == ["EXIF orientation applied to 7 of 8 images: boxes are in upright pixels"]
    assert split.stored_sizes == [size] * 8


def test_as_stored_where_sizes_say_so_and_the_others_follow(tmp_path):
    split = check(make(tmp_path, ALL, (30, 40), ["stored"] * 6 + [None] * 2, as_stored=True), 8)
    (note,) = split.notes
    assert note.startswith("EXIF orientation not applied to 7 of 8 images: by the annotations' sizes")
    assert split.stored_sizes == [(30, 40)] * 4 + [(40, 30)] * 4


def test_each_image_follows_its_own_size_and_what_cannot_tell_the_most(tmp_path):
    upright = make(tmp_path / "upright", (3, 6, 6, 8), (30, 40), [None, "upright", "upright", "stored"])
    edit(
        upright,
        lambda content: content["annotations"][3].update(
            bbox=shown(turned(drawing((30, 40)), 8).transpose(2, 0, 1))
        ),
    )
    split = check(upright, 4)
    assert ["applied to 3 of 4" in split.notes[0], "not applied to 1 of 4" in split.notes[1]] == [True, True]
    assert split.stored_sizes == [(30, 40)] * 3 + [(40, 30)]


def test_the_other_split_tells_where_this_one_cannot(tmp_path):
    make(tmp_path, (3, 2), (40, 40), ["stored"] * 2, as_stored=True)
    make(tmp_path / "more", (6, 8), (30, 40), ["stored"] * 2, as_stored=True)
    file = tmp_path / "more/annotations/instances_val.json"
    file.rename(tmp_path / "annotations/instances_train.json")
    for image in (tmp_path / "more/images").iterdir():
        image.rename(tmp_path / "images" / f"train_{image.name}")
    text = (tmp_path / "annotations/instances_train.json").read_text().replace("val_", "train_val_")
    (tmp_path / "annotations/instances_train.json").write_text(text)
    split = check(tmp_path, 2)
    assert "not applied to 2 of 2" in split.notes[0]


def test_another_reading_is_another_set(tmp_path):
    prints = [
        open_data(make(tmp_path / name, (3, 3), (40, 40), [None, None], as_stored), "val").fingerprint
        for name, as_stored in (("a", False), ("b", False), ("c", True))
    ]
    assert prints[0] == prints[1] != prints[2]


def test_a_size_of_neither_kind_is_named(tmp_path):
    folder = make(tmp_path, (6,), (30, 40), ["upright"])
    edit(folder, lambda content: content["images"][0].update(height=31))
    with pytest.raises(DataError, match="it is 40x30 pixels, the annotations say 40x31"):
        open_data(folder, "val")


@pytest.mark.parametrize(
    "name",
    [
        "images\\a b.png",
        "./images/a b.png",
        "images/a%20b.png",
        "C:\\Users\\me\\set\\images\\a b.png",
        "/mnt/other/machine/a b.png",
        "/data/local-files/?d=photos/a%20b.png",
        "s3://bucket/photos/a b.png",
    ],
)
def test_names_of_another_machine_are_found_by_their_end(tmp_path, name):
    folder = write_set(tmp_path, [box(1, 1)], names=("a b.png",))
    edit(folder, lambda content: content["images"][0].update(file_name=name))
    assert open_data(folder, "val", strict=True).files == [folder / "images/a b.png"]


def test_two_names_for_one_file_are_refused_not_guessed(tmp_path):
    folder = write_set(tmp_path, [box(1, 1), box(2, 2)])

    def change(content):
        for camera, image in enumerate(content["images"]):
            image["file_name"] = f"cam{camera}/a.png"

    edit(folder, change)
    with pytest.raises(DataError, match=r"could be cam0/a\.png or cam1/a\.png") as error:
        open_data(folder, "val")
    assert "none of its 2 images" in one_line(error)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0.png", "", "..", "/"])
def test_a_name_that_no_file_can_have_is_a_missing_file(tmp_path, name):
    folder = write_set(tmp_path, [box(1, 2)])
    edit(folder, lambda content: content["images"][0].update(file_name=name))
    split = open_data(folder, "val")
    assert split.image_ids == [2]
    assert len(split.skipped) == 1


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (os.mkfifo, "it is a device or pipe"),
        (os.mkdir, "it is a folder"),
        (lambda path: os.symlink(path, path), "it is a link that leads back to itself"),
        (lambda path: os.symlink("gone", path), "it is a link to nothing"),
    ],
)
def test_what_stands_in_an_images_place_is_named(tmp_path, make, problem):
    folder = write_set(tmp_path, [box(1, 2)])
    place = folder / "images/a.png"
    place.unlink()
    make(place)
    split = open_data(folder, "val")
    assert split.files == [folder / "images/b.png"]
    (line,) = split.skipped
    assert line.endswith(f"{place} is no image: {problem}")
    with pytest.raises(DataError, match=f"is no image: {problem}; replace it"):
        read_header(place)  # as of a folder of images without annotations
