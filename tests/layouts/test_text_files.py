"""Text files as editors and tools write them, and names of classes that can mean one order only."""

import os

import pytest

from autoprune.errors import DataError
from autoprune.layouts.text_files import read_class_list, read_lines


def test_lines_of_any_editor(tmp_path):
    file = tmp_path / "names.txt"
    for text in ("cat\ndög\n", "\n cat \r\n\r\ndög\r\n", "cat\ndög"):
        for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
            file.write_bytes(text.encode(encoding))
            assert read_lines(file) == ["cat", "dög"]
    for encoding in ("utf-16-be", "utf-32-be"):
        file.write_bytes(("\ufeff" + "cat\ndög").encode(encoding))
        assert read_lines(file) == ["cat", "dög"]


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"\xff\xfe\x00", "is no UTF-16 text: byte 2 is 0x00; save it as UTF-8"),
        ("dög".encode("latin-1"), "is no UTF-8 text: byte 1 is 0xf6; save it as UTF-8"),
        ("cat".encode("utf-16-le"), "is no UTF-8 text: byte 1 is 0x00; save it as UTF-8"),
        (bytes(40), "is no UTF-8 text: byte 0 is 0x00; save it as UTF-8"),
    ],
)
def test_what_is_no_text_is_refused(tmp_path, data, problem):
    (tmp_path / "a.txt").write_bytes(data)
    with pytest.raises(DataError) as error:
        read_lines(tmp_path / "a.txt")
    assert str(error.value) == f"{tmp_path}/a.txt {problem}"


def test_what_is_no_file_is_refused_and_not_waited_for(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("/nowhere/at/all")
    os.mkfifo(tmp_path / "pipe")
    for name, problem in (
        ("folder", "it is a folder"),
        ("link", "it is a link to nothing"),
        ("pipe", "it is a device or pipe"),
        ("lost", "No such file"),
    ):
        with pytest.raises(DataError, match=f"cannot read .*{name}: {problem}"):
            read_lines(tmp_path / name)


def names_of(tmp_path, text):
    (tmp_path / "classes.txt").write_text(text)
    return read_class_list(tmp_path / "classes.txt")


def test_names_of_classes_one_a_line_or_numbered(tmp_path):
    expected = ["cat", "traffic light", "dog"]
    assert names_of(tmp_path, "cat\ntraffic light\n dog \n\n") == expected
    assert names_of(tmp_path, "0: cat\n1:traffic light\n2 : dog\n") == expected
    assert names_of(tmp_path, "2: dog\n0: cat\n1: traffic light") == expected
    assert names_of(tmp_path, "3\n1\n2") == ["3", "1", "2"]
    assert names_of(tmp_path, "0: cat\ndog\n") == ["0: cat", "dog"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("cat\n\ndog\n", "line 2 is blank, where class 1 would be"),
        ("\ncat\n", "line 1 is blank"),
        ("# names\ncat\n", "line 1 is a comment, and would be class 0; remove it"),
        ("1: cat\n2: dog\n", "numbers the classes 1 to 2; YOLO counts them from 0"),
        ("0: cat\n2: dog\n", "numbers the classes 0 to 2"),
        ("cat,0\ndog,1\n", "'cat,0' is no name of a class; write one name a line"),
        ("0;cat\n1;dog\n", "'0;cat' is no name of a class"),
        ('["cat", "dog"]', "is no name of a class"),
        ('item {\n  id: 1\n  name: "cat"\n}\n', "'item {' is no name of a class"),
    ],
)
def test_lists_whose_lines_are_not_the_names_are_refused(tmp_path, text, problem):
    with pytest.raises(DataError) as error:
        names_of(tmp_path, text)
    assert problem in str(error.value)
    assert str(error.value).startswith(f"{tmp_path}/classes.txt")
