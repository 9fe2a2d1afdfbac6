import errno
import os
import resource
import signal
import stat
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import save_file

from autoprune.errors import ConfigError, RunError
from autoprune.files import (
    cache_folder,
    inline_yaml,
    naming_paths,
    new_folder,
    read_yaml,
    replacing,
    write_text,
    write_yaml,
)


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


def test_a_file_larger_than_may_be_says_what_to_raise(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python itself has it
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
        with pytest.raises(
            RunError, match=r"cannot write .*x: it would be larger .* raise the limit \(`ulimit -f`"
        ):
            write_text(tmp_path / "x", "text" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
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


@pytest.mark.parametrize(
    ("first", "second"),
    [("yes", "true"), ("on", "Yes"), ("1", "1.0"), ("1", '"1"'), ("16", "0x10"), ("~", "null"), ("true", "1"),
     ("'true'", "true"), ("2001-01-01", "'2001-01-01'"), ("1", "!!str 1"), ("010", "8")],
)  # fmt: skip
@pytest.mark.parametrize("text", ["{}: a\n{}: b\n", "x:\n- {{{}: a,\n  {}: b}}\n"])
def test_keys_that_yaml_reads_as_one_are_refused_with_both_lines(tmp_path, first, second, text):
    path = tmp_path / "typed.yaml"
    path.write_text(text.format(first, second))
    one, other = (yaml.safe_load(key) for key in (first, second))
    assert one == other or str(yaml.load(first, yaml.BaseLoader)) == str(yaml.load(second, yaml.BaseLoader))
    start = text.count("\n") - 1
    with pytest.raises(
        ConfigError, match=rf"line {start + 1}: `.*` is given twice, first in line {start}"
    ) as caught:
        read_yaml(path)
    assert "\n" not in str(caught.value)


def test_keys_that_differ_are_what_the_plain_loader_reads(tmp_path):
    text = "1: a\n2: b\n1.5: c\nfalse: d\n'no!': e\n2001-01-01: {yes: 1, no: 2, ~: 3}\n"
    path = tmp_path / "typed.yaml"
    path.write_text(text)
    assert read_yaml(path) == yaml.safe_load(text)
    path.write_text("!odd x: 1\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        read_yaml(path)


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o002, 0o077])
def test_every_file_has_the_mode_that_the_umask_gives(tmp_path, umask):
    before = os.umask(umask)
    try:
        (tmp_path / "plain").touch()
        write_text(tmp_path / "x.yaml", "a: 1")
        with replacing(tmp_path / "x.safetensors") as temporary:
            save_file({"a": torch.ones(2)}, temporary)
        with replacing(tmp_path / "x.private") as temporary:
            temporary.unlink()
            temporary.touch(0o600)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in tmp_path.iterdir()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)
    assert len(modes) == 4


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


def test_only_a_file_is_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "to pipe").symlink_to(tmp_path / "pipe")
    before = sorted(os.listdir(tmp_path))
    for name, kind in (("pipe", "pipe"), ("to pipe", "pipe"), ("folder", "folder"), ("loop", "link")):
        with pytest.raises(RunError, match=rf"cannot write .*{name}: it is a .*{kind}.*another path"):
            write_text(tmp_path / name, "text")
    assert sorted(os.listdir(tmp_path)) == before
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_stays_one_and_its_file_is_replaced(tmp_path, exists):
    target, link = tmp_path / "folder" / "file", tmp_path / "link"
    link.symlink_to(target)
    if exists:
        write_text(target, "old")
    write_text(link, "new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_name_may_be_as_long_as_the_system_allows(tmp_path):
    path = tmp_path / ("x" * 255)
    write_text(path, "text")
    assert path.read_text() == "text"


@pytest.mark.parametrize("name", ["new", "several/new", "empty"])
def test_a_new_folder_is_there_as_a_whole_or_not_at_all(tmp_path, name):
    (tmp_path / "empty").mkdir()
    path = tmp_path / name
    before = sorted(tmp_path.rglob("*"))

    def fail(folder):
        (folder / "half").write_text(folder.name)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), new_folder(path) as folder:
        fail(folder)
    assert sorted(tmp_path.rglob("*")) == before
    with new_folder(path) as folder:
        assert folder.name == path.name
        (folder / "whole").write_text("1")
        (folder / "inside").mkdir()
        assert not (path / "whole").exists()
    assert sorted(entry.name for entry in path.iterdir()) == ["inside", "whole"]
    assert not [entry for entry in tmp_path.rglob("*") if entry.suffix == ".tmp"]
    assert path.stat().st_mode & 0o777 == (tmp_path / "empty").stat().st_mode & 0o777


def test_what_fails_within_a_new_folder_names_the_folder_to_be(tmp_path):
    path = tmp_path / "new"

    def fill_disk(folder):
        with replacing(folder / "file"):
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(RunError) as caught, new_folder(path) as folder:
        fill_disk(folder)
    assert str(caught.value).startswith(f"the disk is full: {path}/file was not written; ")
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("exists", [False, True])
def test_of_two_that_write_one_new_folder_the_later_is_refused(tmp_path, exists):
    path = tmp_path / "new"
    if exists:
        path.mkdir()

    def both():
        with new_folder(path) as later, new_folder(path) as earlier:
            (earlier / "file").write_text("earlier")
            (later / "file").write_text("later")

    with pytest.raises(RunError, match=f"^{path} was written by another process"):
        both()
    assert (path / "file").read_text() == "earlier"
    assert [entry.name for entry in tmp_path.rglob("*")] == ["new", "file"]


def test_a_new_folder_that_cannot_be_is_one_line(tmp_path):
    (tmp_path / "file").write_text("1")
    refused = pytest.raises(RunError, match=r"^cannot write .*file/new: .*; choose another folder")
    with refused, new_folder(tmp_path / "file/new") as folder:
        (folder / "x").write_text("1")
    assert os.listdir(tmp_path) == ["file"]


def test_what_cannot_be_read_meanwhile_is_not_blamed_on_the_new_folder(tmp_path):
    with pytest.raises(FileNotFoundError), new_folder(tmp_path / "new"):
        (tmp_path / "missing").read_text()


def test_a_path_that_the_system_refuses_is_named_and_other_errors_pass():
    with pytest.raises(RunError, match="cannot use /x/y: Permission denied; check the path"), naming_paths():
        raise PermissionError(errno.EACCES, "Permission denied", "/x/y")
    with pytest.raises(OSError, match="No space left"), naming_paths():  # of standard output, for one
        raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("name", ["link", "link/inside"])
def test_a_link_to_nothing_is_named(tmp_path, name):
    (tmp_path / "link").symlink_to("gone")
    message = rf"cannot write .*{name}: {tmp_path}/link is a link to nothing \(gone\); remove the link"
    with pytest.raises(RunError, match=message), new_folder(tmp_path / name):
        pytest.fail("it is refused before the work begins")
    with pytest.raises(RunError, match="is a link to nothing"):
        write_text(tmp_path / "link" / "file", "text")
    assert os.listdir(tmp_path) == ["link"]


def test_a_folder_that_a_path_only_passes_is_not_made(tmp_path):
    with new_folder(tmp_path / "passed" / ".." / "new") as folder:
        (folder / "x").write_text("1")
    assert os.listdir(tmp_path) == ["new"]
