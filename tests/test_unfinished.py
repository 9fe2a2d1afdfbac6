"""What a killed process left half-written is gone after the next write; what is being written stays."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from autoprune import unfinished
from autoprune.files import is_empty, new_folder, write_text

WRITE = """
import sys, time
from pathlib import Path
from autoprune.files import {writer}
with {writer}(Path(sys.argv[1])) as half:
    place = half / "inside" if half.is_dir() else half
    place.write_text("half")
    print("begun", flush=True)
    time.sleep(600)
"""


def begin(writer: str, path: Path) -> subprocess.Popen[str]:
    """A process that is in the middle of writing."""
    command = [sys.executable, "-c", WRITE.format(writer=writer), str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    return process


def kill(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def hidden(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.name.startswith(".")]


def age(folder: Path) -> None:
    """What is unfinished was last changed two days ago."""
    for path in hidden(folder):
        os.utime(path, (time.time() - 2 * unfinished.ABANDONED_S,) * 2)


def write_folder(path: Path) -> None:
    with new_folder(path) as folder:
        (folder / "whole").write_text("whole")


@pytest.mark.parametrize("exists", [False, True])
@pytest.mark.parametrize("writer", ["new_folder", "replacing"])
def test_what_a_killed_process_left_goes_with_the_next_write(
    writer: str, exists: bool, tmp_path: Path
) -> None:
    path, other = tmp_path / "name", tmp_path / ".other.abcd1234.tmp"
    other.touch()
    if exists and writer == "new_folder":
        path.mkdir()
    elif exists:
        path.write_text("old")
    place = path if path.is_dir() else tmp_path
    first, second = (begin(writer, path) for _ in range(2))
    for folder in {place, tmp_path}:
        age(folder)
    kill(first)
    assert not path.is_dir() or is_empty(path)
    write_folder(path) if writer == "new_folder" else write_text(path, "whole")
    left = [file for file in {*hidden(place), *hidden(tmp_path)} if file != other]
    assert len(left) == 1, "that of the process that lives"
    kill(second)
    assert other.exists(), "of another name"


def test_one_that_was_just_made_stays(tmp_path: Path) -> None:
    made = unfinished.new_folder(tmp_path, "name")
    write_folder(tmp_path / "name")
    assert made.exists()
    age(tmp_path)
    unfinished.new_folder(tmp_path, "name")
    assert not made.exists()


def test_names_are_no_longer_than_the_system_allows(tmp_path: Path) -> None:
    path = tmp_path / ("x" * 255)
    write_folder(path)
    assert (path / "whole").read_text() == "whole"
