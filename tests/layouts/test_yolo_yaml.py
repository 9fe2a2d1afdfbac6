"""The YAML file of YOLO data: paths of any machine, and names that can mean one thing only."""

import pytest

from autoprune.data.coco import open_data
from autoprune.errors import ConfigError, DataError
from autoprune.layouts.yolo_yaml import read_names, yaml_layout

from .conftest import check, refused
from .test_yolo import both

SPLITS = "train: images/train\nval: images/val\n"


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


def names_of(folder, text):
    (folder / "data.yaml").write_text(text)
    return read_names(folder / "data.yaml")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('names: "circle,square"', '`names` must be a list, or `number: name`, and is "circle,square"'),
        (f"names: {'x' * 900}", 'and is "' + "x" * 58 + "…; fix it"),
        ("names: null\nnc: 2", "and is null"),
        ("names: 7", "and is 7"),
        ("names: [a, [b, c]]", "the name of class 1 in `names` must be a text, and is a list of 2"),
        ("names: {0: a, 1: {b: c}}", "the name of class 1 in `names` must be a text, and is a mapping of 1"),
        ("names: [a, no]", "class 1 in `names` is no text to YAML, but false; quote it"),
        ("names: {3: true}", "class 3 in `names` is no text to YAML, but true; quote it"),
        ("names: [null, a]", "class 0 in `names` is no text to YAML, but null; quote it"),
        ("names: [2024-01-01]", "class 0 in `names` is no text to YAML"),
        ("names: [a, '  ']", "class 1 in `names` is blank"),
        ("names: {0.5: a}", "has the key 0.5"),
        ("names: {-1: a}", "has the key -1"),
        ("names: {true: a}", "has the key true"),
        ("names: [a, b, a]", 'the classes 0 and 2 have the same name, "a"'),
        ("names: {4: '1', 9: 1}", 'the classes 4 and 9 have the same name, "1"'),
        ("names: [a, b]\nnc: '3'", "`names` has 2 names, and `nc` is 3"),
        ("names: [a, b]\nnc: 3.0", "`names` has 2 names, and `nc` is 3"),
        ("names: []", "`names` has 0 names"),
        ("nc: 1000000000", "`nc` must be the number of classes, from 1 to 100000, and is 1000000000"),
        (f"nc: 0x{'f' * 9000}", "and is a number of more than 60 digits"),
        ("nc: -2", "and is -2"),
        ("nc: 2.5", "and is 2.5"),
        ("nc: [2]", "and is a list of 1"),
        ("nc: two\nnames: [a, b]", 'and is "two"'),
    ],
)
def test_names_that_are_none_are_refused(tmp_path, text, message):
    with pytest.raises(DataError) as error:
        names_of(tmp_path, text)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 300 + len(str(tmp_path))


def test_names_in_any_writing(tmp_path):
    for text in ("names: [a, 2]", "names: {0: a, '1': '2'}\nnc: '2'", "names: {0.0: a, 1: 2}\nnc: 2.0"):
        assert names_of(tmp_path, text) == {0: "a", 1: "2"}
    assert names_of(tmp_path, "nc: '2'") == {0: "class_0", 1: "class_1"}
    assert names_of(tmp_path, 'names: ["true", "null"]') == {0: "true", 1: "null"}
    (tmp_path / "classes.txt").write_text("cat\ndog\ncat\n")
    with pytest.raises(DataError, match='the classes 0 and 2 have the same name, "cat"'):
        read_names(tmp_path / "classes.txt")


@pytest.mark.parametrize("key", ["names", "nc", "path", "val"])
def test_aliases_that_stand_for_gigabytes_are_not_written_out(tmp_path, key):
    (tmp_path / "images").mkdir()
    steps = [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    splits = "train: images\n" + ("" if key == "val" else "val: images\n")
    text = "\n".join(["a0: &a0 [x]", *steps, f"{key}: *a11", splits])
    (tmp_path / "data.yaml").write_text(text)
    with pytest.raises(DataError, match="a list of 10") as error:
        (read_names if key in ("names", "nc") else yaml_layout)(tmp_path / "data.yaml")
    assert len(str(error.value)) < 300 + len(str(tmp_path))


@pytest.mark.parametrize(
    "path",
    [
        r"C:\bob\set\images\val",
        "D:/images/val",
        r"\\server\share\images\val",
        "file:///home/bob/images/val",
        "file:///C:/bob/images/val",
        "FILE://host/my%20set/images/val",
    ],
)
def test_paths_of_another_machine_are_read_by_their_end(tmp_path, path):
    both(tmp_path)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: '{path}'\nnames: [cat, dog]\n")
    check(open_data(tmp_path, "val", strict=True), 3)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: '{path}x'\nnames: [cat, dog]\n")
    assert "does not exist below" in refused(tmp_path)


@pytest.mark.parametrize("path", ["x" * 300, "images/" + "x/" * 3000, "true", "[[images/val]]", '"a\\0b"'])
def test_a_value_that_can_be_no_path_is_refused(tmp_path, path):
    both(tmp_path)
    (tmp_path / "data.yaml").write_text(f"train: images/train\nval: {path}\nnames: [cat, dog]\n")
    message = refused(tmp_path)
    assert f"{tmp_path}/data.yaml: `val" in message
    assert len(message) < 500 + 2 * len(str(tmp_path))
