"""YOLO data as Ultralytics writes and reads it, against boxes drawn into the images."""

import pytest

from autoprune.data.coco import open_data

from .conftest import CLASSES, check, names_of, picture, refused, some_boxes, yolo_line

NAMES = "names: [cat, dog]\n"


def make(folder, images, labels, count=3, line=yolo_line, seed=0):
    """Pictures and label files; classes alternate, and every box is the drawn one."""
    (folder / labels).mkdir(parents=True, exist_ok=True)
    for number, box in enumerate(some_boxes(count, seed)):
        picture(folder / images, f"{number}.png", box)
        (folder / labels / f"{number}.txt").write_text(line(number % 2, box) + "\n")


def both(folder, images="images/{}", labels="labels/{}", splits=("train", "val"), **options):
    for seed, split in enumerate(splits):
        make(folder, images.format(split), labels.format(split), seed=seed, **options)


@pytest.mark.parametrize(
    ("images", "labels", "yaml"),
    [
        ("images/{}", "labels/{}", "train: images/train\nval: images/val\n"),
        ("images/{}", "labels/{}", "path: {root}\ntrain: images/train\nval: images/val\n"),
        ("images/{}", "labels/{}", "path: .\ntrain: ./images/train/\nval: [images/val]\n"),
        (
            "images/{}",
            "labels/{}",
            "path: /content/gone\ntrain: /content/gone/images/train\nval: images/val\n",
        ),
        ("images/{}", "labels/{}", "path: ../elsewhere\ntrain: images\\train\nvalidation: images/val\n"),
        ("{}/images", "{}/labels", "train: ../train/images\nval: ../val/images\n"),  # Roboflow
        ("{}/images", "{}/labels", "train: train\nval: val\n"),
        ("{}", "{}", "train: train\nval: val\n"),  # labels beside the images
    ],
)
@pytest.mark.parametrize(
    "names", [NAMES, "names:\n  0: cat\n  1: dog\nnc: 2\n", "names: {{'1': dog, '0': cat}}\n"]
)
def test_a_yaml_file_with_splits(tmp_path, images, labels, yaml, names):
    both(tmp_path, images, labels)
    file = tmp_path / "data.yaml"
    file.write_text(yaml.format(root=tmp_path) + names.format())
    for data in (tmp_path, file):
        for split in ("train", "val"):
            opened = open_data(data, split, strict=True)
            check(opened, 3)
            assert list(opened.categories.values()) == list(CLASSES)
            assert [opened.get(index)[1]["labels"].item() for index in range(3)] == [1, 2, 1]
    assert "has no split 'test'" in refused(tmp_path, "test")


def test_a_list_of_images(tmp_path):
    both(tmp_path)
    for split, prefix in (("train", "./images/train"), ("val", "/gone/set/images/val")):
        (tmp_path / f"{split}.txt").write_text("\n".join(f"{prefix}/{number}.png" for number in (2, 0)))
    (tmp_path / "mine.yml").write_text("train: train.txt\nval: val.txt\n" + NAMES)
    for split in ("train", "val"):
        opened = open_data(tmp_path, split, strict=True)
        check(opened, 2)
        assert [path.name for path in opened.files] == ["0.png", "2.png"]


@pytest.mark.parametrize("place", ["classes.txt", "labels/classes.txt", "obj.names"])
def test_without_yaml_the_names_are_in_a_text_file(tmp_path, place):
    both(tmp_path)
    assert "need data.yaml or classes.txt" in refused(tmp_path)
    (tmp_path / place).write_text("cat\ndog\n\n")
    for split in ("train", "val"):
        check(open_data(tmp_path, split, strict=True), 3)


def test_without_splits_a_fraction_divides_it(tmp_path):
    make(tmp_path, "images", "labels", count=5)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert "--val-fraction 0.2" in refused(tmp_path)
    check(open_data(tmp_path, "all", strict=True), 5)
    sizes = [len(open_data(tmp_path, split, val_fraction=0.5)) for split in ("train", "val")]
    assert sum(sizes) == 5
    assert min(sizes) > 0


def polygon(label, box):
    """A diamond that touches each side of the box."""
    x, y, width, height = box
    corners = ((x + width / 2, y), (x + width, y + 3), (x + 2, y + height), (x, y + 1))
    return " ".join([str(label), *(f"{px / 80!r} {py / 60!r}" for px, py in corners)])


@pytest.mark.parametrize("line", [polygon, lambda label, box: yolo_line(label, box) + " 0.5 0.5 2"])
def test_polygons_become_boxes_and_key_points_are_left_aside(tmp_path, line):
    both(tmp_path, line=line)
    keypoints = "" if line is polygon else "kpt_shape: [1, 3]\n"
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\n" + NAMES + keypoints)
    check(open_data(tmp_path, "val", strict=True), 3)


def test_images_without_labels_have_no_objects(tmp_path):
    both(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\n" + NAMES)
    (tmp_path / "labels/val/0.txt").unlink()
    (tmp_path / "labels/val/1.txt").write_text("")
    split = open_data(tmp_path, "val", strict=True)
    assert [len(split.get(index)[1]["boxes"]) for index in range(3)] == [0, 0, 1]
    for number in (1, 2):
        (tmp_path / f"labels/val/{number}.txt").unlink()
    assert f"none of the 3 images has a label file, such as {tmp_path}/labels/val/0.txt" in refused(tmp_path)


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("7 0.5 0.5 0.1 0.1", "its class 7 has no name; there are 2"),
        ("-1 0.5 0.5 0.1 0.1", "its class -1 has no name"),
        ("0.5 0.5 0.5 0.1 0.1", "not a class and finite coordinates"),
        ("1 nan 0.5 0.1 0.1", "not a class and finite coordinates"),
        ("cat 0.5 0.5 0.1 0.1", "are not numbers"),
        ("1 0.5 0.5 0.1", "it has 4 numbers"),
        ("1 0.5 0.5 0.1 0.1 0.9", "it has 6 numbers"),
        ("1 40 30 20 10", "not fractions of the image"),
        ("1 0.5 0.5 0 0.1", "has no area"),
    ],
)
def test_a_line_that_is_no_box_is_left_out_with_its_place(tmp_path, line, problem):
    both(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\n" + NAMES)
    file = tmp_path / "labels/val/1.txt"
    file.write_text(file.read_text() + line + "\n")
    split = open_data(tmp_path, "val")
    assert len(split.skipped) == 1
    assert problem in split.skipped[0]
    assert f"{file}:2" in split.skipped[0]
    assert [len(split.get(index)[1]["boxes"]) for index in range(3)] == [1, 1, 1]
    assert problem in refused(tmp_path, strict=True)


def test_a_repeated_line_counts_once(tmp_path):
    both(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\n" + NAMES)
    file = tmp_path / "labels/val/1.txt"
    file.write_text(file.read_text() * 2)
    split = open_data(tmp_path, "val")
    assert f"{file}:2: it repeats line 1" in split.skipped[0]
    assert len(split.get(1)[1]["boxes"]) == 1


def test_changed_labels_are_read_again(tmp_path):
    both(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\n" + NAMES)
    assert len(open_data(tmp_path, "val").coco.anns) == 3
    (tmp_path / "labels/val/1.txt").unlink()
    assert len(open_data(tmp_path, "val").coco.anns) == 2
    picture(tmp_path / "images/val", "new.png", None)
    assert len(open_data(tmp_path, "val")) == 4


def test_two_yaml_files_are_two_readings_and_other_settings_are_none(tmp_path):
    both(tmp_path)
    text = "train: images/train\nval: images/val\n" + NAMES
    (tmp_path / "data.yaml").write_text(text)
    (tmp_path / "run.yaml").write_text("data: .\ntrials: 3\n")
    check(open_data(tmp_path, "val"), 3)
    (tmp_path / "other.yaml").write_text(text)
    message = refused(tmp_path)
    assert "could be YOLO" in message
    assert "other.yaml" in message
    check(open_data(tmp_path / "other.yaml", "val"), 3)


def write_yaml(folder, val="images/val", train="images/train"):
    (folder / "data.yaml").write_text(f"train: {train}\nval: {val}\n" + NAMES)


def test_images_without_labels_are_counted_in_a_note(tmp_path):
    both(tmp_path, count=6)
    write_yaml(tmp_path)
    assert open_data(tmp_path, "val", strict=True).notes == []
    for number in (1, 3, 4):
        (tmp_path / f"labels/val/{number}.txt").unlink()
    first = tmp_path / "images/val/1.png"
    expected = [f"3 of 6 images have no label file and count as empty, first {first}"]
    assert open_data(tmp_path, "val", strict=True).notes == expected


@pytest.mark.parametrize(
    ("images", "labels"), [("images/{}", "labels/{}"), ("{}/images", "{}/labels"), ("{}", "{}")]
)
def test_labels_without_an_image_are_named(tmp_path, images, labels):
    both(tmp_path, images, labels)
    write_yaml(tmp_path, images.format("val"), images.format("train"))
    folder = tmp_path / labels.format("val")
    (folder / "classes.txt").write_text("cat\ndog\n")
    (folder / "README.txt").write_text("drawn by hand\n")
    (tmp_path / images.format("val") / "0.png").unlink()
    split = open_data(tmp_path / "data.yaml", "val")
    assert names_of(split) == ["1.png", "2.png"]
    assert [line.split(":")[0] for line in split.skipped] == [str(folder / "0.txt")]
    assert "there is no image 0.*" in split.skipped[0]
    assert "0.txt" in refused(tmp_path / "data.yaml", strict=True)


def test_labels_of_another_split_or_of_a_lost_folder(tmp_path):
    make(tmp_path, "images", "labels", count=4)
    (tmp_path / "train.txt").write_text("images/0.png\nimages/1.png\n")
    (tmp_path / "val.txt").write_text("images/2.png\nimages/3.png\n")
    (tmp_path / "data.yaml").write_text("train: train.txt\nval: val.txt\n" + NAMES)
    check(open_data(tmp_path, "val", strict=True), 2)
    (tmp_path / "labels/night").mkdir()
    (tmp_path / "labels/night/9.txt").write_text(yolo_line(0, (1, 2, 3, 4)))
    (tmp_path / "data.yaml").write_text("train: images\nval: images\n" + NAMES)
    (line,) = open_data(tmp_path, "val").skipped
    assert line.startswith(
        f"{tmp_path}/labels/night/9.txt: there is no image 9.* for it in {tmp_path}/images/n"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "it is an image"),
        (b"images/val/0.png\0", "no UTF-8 text"),
        (b"images/val/\xe9.png", "no UTF-8 text"),
        ("images/val/0.png".encode("utf-16"), "no UTF-8 text"),
        (b"images/val/0.png\n" + b"x/" * 3000, "line 2 is too long for a path, with 6000 characters"),
        (b"images/val/" + b"x" * 300, "line 1 is too long for a path"),
    ],
)
def test_what_is_no_list_of_images_is_refused(tmp_path, content, reason):
    both(tmp_path)
    name = "images/val/0.png" if content is None else "val.txt"
    if content is not None:
        (tmp_path / name).write_bytes(content)
    write_yaml(tmp_path, name)
    message = refused(tmp_path)
    assert message.startswith(f"{tmp_path / name} is neither a folder of images nor a list of them")
    assert reason in message
    check(open_data(tmp_path, "train"), 3)


def test_a_listed_name_as_long_as_systems_allow(tmp_path):
    both(tmp_path)
    (tmp_path / "val.txt").write_text("images/val/2.png\n" + "y" * 255 + "\n" + "z/" * 1000 + "\n")
    write_yaml(tmp_path, "val.txt")
    split = open_data(tmp_path, "val")
    assert names_of(split) == ["2.png"]
    assert len(split.skipped) == 2


def test_suffixes_in_capitals(tmp_path):
    both(tmp_path)
    (tmp_path / "CLASSES.TXT").write_text("cat\ndog\n")
    for file in [*tmp_path.rglob("*.txt"), tmp_path / "CLASSES.TXT"]:
        file.rename(file.with_name("classes.TXT") if file.stem == "CLASSES" else file.with_suffix(".TXT"))
    for file in tmp_path.rglob("*.png"):
        file.rename(file.with_suffix(".PNG"))
    for split in ("train", "val"):
        check(open_data(tmp_path, split, strict=True), 3)
    assert open_data(tmp_path, "val").categories == {1: "cat", 2: "dog"}


def test_label_files_without_an_image_are_counted(tmp_path):
    both(tmp_path)
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    for name in ("x.txt", "y.TXT"):
        (tmp_path / "labels/val" / name).write_text(yolo_line(0, (3, 4, 10, 10)))
    (tmp_path / "labels/val/1.TXT").write_text(yolo_line(0, (3, 4, 10, 10)))
    split = open_data(tmp_path, "val")
    assert len(split) == 3
    twice, first, second = split.skipped
    assert twice.endswith("labels/val/1.TXT: 1.txt is read instead, in another case; remove one of the two")
    for line, name in ((first, "x"), (second, "y")):
        assert f"there is no image {name}.* for it in {tmp_path}/images/val" in line
    assert split.notes == [f"2 label files have no image, first {tmp_path}/labels/val/x.txt"]
    assert open_data(tmp_path, "train").notes == []
