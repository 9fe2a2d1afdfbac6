import errno
import os
from pathlib import Path

import pytest

from autoprune.errors import ConfigError, RunError
from autoprune.files import cache_folder, inline_yaml, read_yaml, replacing, write_text, write_yaml


def test_written_yaml_reads_back_in_order(tmp_path):
    content = {"b": [1, 2], "a": {"ü": 0.5}}
    write_yaml(tmp_path / "deep" / "x.yaml", content, "# a comment\n")
    assert read_yaml(tmp_path / "deep" / "x.yaml") == content
    assert list(read_yaml(tmp_path / "deep" / "x.yaml")) == ["b", "a"]


def test_failed_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "kept.txt"
    write_text(path, "old")
    with pytest.raises(AttributeError), replacing(path) as temporary:
        temporary.write_text("half of the new").no_such_attribute()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["kept.txt"]


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    with pytest.raises(RunError, match="disk is full") as caught, replacing(tmp_path / "x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == []


def test_unwritable_folder_names_the_path(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/x"):
        write_text(tmp_path / "file" / "x", "text")


@pytest.mark.parametrize("text", ["a: [1", "\tb: 1", "a: b: c"])
def test_broken_yaml_is_one_line_with_the_place(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="line 1") as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "key", "lines"),
    [
        ("a: 1\nb: 2\na: 3\n", "a", (1, 3)),
        ("x:\n  - b: {c: 1,\n     c: 2}\n", "c", (2, 3)),
        ("{a: 1, a: 1}", "a", (1, 1)),
    ],
)
def test_a_key_given_twice_is_refused_with_both_lines(tmp_path, text, key, lines):
    path = tmp_path / "twice.yaml"
    path.write_text(text)
    first, line = lines
    with pytest.raises(ConfigError, match=f"line {line}: `{key}` is given twice, first in line {first};"):
        read_yaml(path)


def test_aliases_and_merged_keys_are_no_duplicates(tmp_path):
    path = tmp_path / "merged.yaml"
    path.write_text("base: &base {a: 1, b: 2}\nother: {<<: *base, a: 3}\nagain: *base\n")
    content = {"base": {"a": 1, "b": 2}, "other": {"a": 3, "b": 2}, "again": {"a": 1, "b": 2}}
    assert read_yaml(path) == content


@pytest.mark.parametrize("text", ["a: 2026-13-01", "[" * 20_000, "a: 1\n---\nb: 2\n", "a: " + "1" * 5000])
def test_what_the_loader_cannot_build_is_one_line_too(tmp_path, text):
    path = tmp_path / "odd.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"odd\.yaml is not valid YAML") as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_missing_yaml_names_the_path():
    with pytest.raises(ConfigError, match=r"nowhere\.yaml"):
        read_yaml(Path("nowhere.yaml"))


def test_the_cache_is_where_the_environment_says(monkeypatch, tmp_path):
    monkeypatch.setenv("AUTOPRUNE_CACHE", str(tmp_path / "configured"))
    assert cache_folder() == tmp_path / "configured"
    monkeypatch.delenv("AUTOPRUNE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "autoprune"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == tmp_path / ".cache" / "autoprune"


def test_a_mapping_in_one_line_reads_back(tmp_path):
    content = {"size": 64, "names": ["a: b", "ü"], "deep": {"x": None}}
    line = inline_yaml(content)
    assert "\n" not in line
    write_text(tmp_path / "x.yaml", line)
    assert read_yaml(tmp_path / "x.yaml") == content


def test_a_written_file_replaces_the_old_one_and_others_may_read_it(tmp_path):
    path = tmp_path / "x.txt"
    write_text(path, "old")
    write_text(path, "new")
    assert path.read_text() == "new"
    assert path.stat().st_mode & 0o777 == 0o644
    assert os.listdir(tmp_path) == ["x.txt"]
