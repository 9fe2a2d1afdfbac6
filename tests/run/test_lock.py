"""The lock of a run directory, with a second process; it goes with its owner, however that ends."""

import fcntl
import json
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from autoprune.errors import RunError
from autoprune.run import lock
from autoprune.run.lock import is_locked, locked

ROOT = Path(__file__).parents[2]
OWNER = """
import sys
from pathlib import Path
from autoprune.run.lock import locked
with locked(Path(sys.argv[1]), ".lock"):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def owner(folder):
    """Another process that holds the lock until its standard input is closed."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "env": environment, "text": True}
    with subprocess.Popen([sys.executable, "-c", OWNER, str(folder)], **pipes) as process:
        try:
            assert process.stdout.readline() == "locked\n"
            yield process
        finally:
            process.kill()


def take(folder):
    with locked(folder, ".lock"):
        return json.loads((folder / ".lock").read_text())


def test_a_second_process_is_kept_out_until_the_first_ends(tmp_path):
    folder = tmp_path / "run"
    with owner(folder) as process:
        with pytest.raises(RunError, match=f"run is in use by another process .*pid {process.pid}"):
            take(folder)
        process.stdin.close()
        assert process.wait() == 0
    assert take(folder)["pid"] == os.getpid()


def test_the_lock_of_a_process_that_is_killed_is_free(tmp_path):
    folder = tmp_path / "run"
    with owner(folder) as process:
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert (folder / ".lock").exists(), "it had no time to remove it"
    assert take(folder)["pid"] == os.getpid()


def test_who_reads_a_folder_is_told_whether_a_process_works_in_it(tmp_path):
    folder, file = tmp_path / "run", tmp_path / "run" / ".lock"
    assert not is_locked(folder, ".lock")
    with owner(folder) as process:
        assert is_locked(folder, ".lock")
        with pytest.raises(RunError, match=f"pid {process.pid}"):
            take(folder)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
    assert file.exists()
    assert not is_locked(folder, ".lock")
    for content in ("", "null", "{}", "damaged"):
        file.write_text(content)
        assert not is_locked(folder, ".lock")
    file.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert is_locked(folder, ".lock"), "its lock may not be seen from here"
    assert take(folder)["pid"] == os.getpid()


def test_who_only_asks_keeps_nobody_out(tmp_path, monkeypatch):
    file = tmp_path / ".lock"
    file.touch()
    with file.open() as reader:
        fcntl.flock(reader, fcntl.LOCK_SH)
        monkeypatch.setattr(lock.time, "sleep", lambda _: fcntl.flock(reader, fcntl.LOCK_UN))
        assert take(tmp_path)["pid"] == os.getpid()


def test_the_file_alone_is_no_lock(tmp_path):
    (tmp_path / ".lock").write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    assert take(tmp_path)["pid"] == os.getpid()


def test_a_lock_of_another_host_names_it(tmp_path):
    """As on a file system that several hosts share."""
    with (tmp_path / ".lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(RunError, match=r"its host and pid are not known yet"):
            take(tmp_path)
        held.write(json.dumps({"host": "elsewhere", "pid": 1}))
        held.flush()
        with pytest.raises(RunError, match="host elsewhere, pid 1"):
            take(tmp_path)


def test_a_file_that_its_last_owner_removes_in_between_is_no_lock(tmp_path, monkeypatch):
    """Between open and flock: whoever comes next would lock another file of the same name."""
    removed, flock = [], fcntl.flock

    def late(handle, kind):
        flock(handle, kind)
        if not removed:
            removed.append((tmp_path / ".lock").stat().st_ino)
            (tmp_path / ".lock").unlink()
            (tmp_path / ".lock").write_text("")

    monkeypatch.setattr("autoprune.run.lock.fcntl.flock", late)
    with locked(tmp_path, ".lock"):
        monkeypatch.undo()
        with pytest.raises(RunError, match=f"pid {os.getpid()}"):
            take(tmp_path)


def test_a_folder_in_which_nothing_was_written_is_removed_again(tmp_path):
    with locked(tmp_path / "a" / "b", ".lock"):
        assert (tmp_path / "a" / "b" / ".lock").exists()
    assert list(tmp_path.iterdir()) == []
    with locked(tmp_path / "a" / "b", ".lock"):
        (tmp_path / "a" / "b" / "front.csv").write_text("")
    assert [path.name for path in (tmp_path / "a" / "b").iterdir()] == ["front.csv"]


def test_a_folder_that_cant_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot write .*file/run"):
        take(tmp_path / "file" / "run")


def test_a_file_that_is_removed_as_it_is_looked_at_is_no_lock(tmp_path, monkeypatch):
    """Its last owner may end at any moment, also once the file was seen to be there."""
    real, removed = os.fstat, []

    def fstat(handle):
        if not removed:
            removed.append(handle)
            (tmp_path / ".lock").unlink()
        return real(handle)

    monkeypatch.setattr("autoprune.run.lock.os.fstat", fstat)
    assert take(tmp_path)["pid"] == os.getpid()
    assert removed
