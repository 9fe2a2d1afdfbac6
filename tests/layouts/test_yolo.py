"""YOLO data as Ultralytics writes and reads it, against boxes drawn into the images."""

import pytest

from autoprune.data.coco import open_data
from autoprune.errors import ConfigError

from .conftest import CLASSES, check, picture, refused, some_boxes, yolo_line

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


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("val: images/val\nnames: [cat]\nnc: 2\n", "`names` has 1 names, and `nc` is 2"),
        ("val: images/val\n", "`names` must be a list"),
        ("val: images/val\nnames: {a: cat}\n", "`names` must be a list, or `number: name`"),
        ("val: images/elsewhere\nnames: [cat, dog]\n", "`val: images/elsewhere` does not exist below"),
        ("val: ../valid/images\nnames: [cat, dog]\n", "`val: ../valid/images` does not exist below"),
        ("val: valid/images\nnames: [cat, dog]\n", "`val: valid/images` does not exist below"),
        ("names: [cat, dog]\n", "has none of the keys train, val and test"),
        ("[1, 2]\n", "is not a YAML file of a data set"),
        ("train: images/train\nnames: [cat, dog]\n", "has no validation split: it has train"),
    ],
)
def test_a_yaml_file_that_is_wrong_is_refused_in_one_line(tmp_path, yaml, message):
    both(tmp_path)
    (tmp_path / "data.yaml").write_text(yaml)
    assert message in refused(tmp_path / "data.yaml")


def test_a_yaml_file_that_is_none_is_named(tmp_path):
    (tmp_path / "data.yaml").write_text("train: [")
    with pytest.raises(ConfigError, match=r"data\.yaml is not valid YAML"):
        open_data(tmp_path, "val")


def test_a_count_of_classes_stands_in_for_names(tmp_path):
    both(tmp_path)
    (tmp_path / "data.yaml").write_text("train: images/train\nval: images/val\nnc: 2\n")
    assert list(open_data(tmp_path, "val").categories.values()) == ["class_0", "class_1"]


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
