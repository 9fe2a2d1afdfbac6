import pytest

from autoprune.layouts.source import files_in, in_any_case, split_of


def test_what_tools_call_the_splits():
    names = ("Train", "training", "VALID", "validation", "val", "Test", "other")
    assert [split_of(name) for name in names] == ["train", "train", "val", "val", "val", "test", None]


@pytest.mark.parametrize("name", ["a.txt", "a.TXT", "a.Txt"])
def test_a_suffix_may_be_in_capitals(tmp_path, name):
    assert in_any_case(tmp_path / "a.txt") == tmp_path / "a.txt"
    (tmp_path / name).touch()
    (tmp_path / "a.txt.bak").touch()
    (tmp_path / "folder.txt").mkdir()
    assert in_any_case(tmp_path / "a.txt") == tmp_path / name
    assert files_in(tmp_path, ".txt") == [tmp_path / name]
    assert files_in(tmp_path / "none", ".txt") == []
    (tmp_path / "a.txt").touch()
    assert in_any_case(tmp_path / "a.txt") == tmp_path / "a.txt"
    assert in_any_case(tmp_path / ("a" * 300 + ".txt")) == tmp_path / ("a" * 300 + ".txt")
