"""Files and folders that are being written: hidden, locked, and removed once their writer was killed.

The lock is the system's, which ends with the process however that ends. Where a disk knows no locks, nothing
is removed; where locks hold on one machine alone, as on some network disks, the age keeps others' files.
"""

import fcntl
import os
import re
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SUFFIX = ".tmp"
ABANDONED_S = 24 * 3600.0
"""Seconds since the last change, after which one that is not locked has lost its writer."""
_UNFINISHED = re.compile(rf"\..*\.\w{{8}}{re.escape(SUFFIX)}", re.DOTALL)


def is_unfinished(path: Path) -> bool:
    """Whether a file or folder has the name of one that is being written."""
    return _UNFINISHED.fullmatch(path.name) is not None


def new_file(folder: Path, name: str) -> Path:
    """An empty file beside one to be, which it is to replace; removes what killed writers left of that."""
    _remove_left(folder, name)
    handle, file = tempfile.mkstemp(dir=folder, prefix=_prefix(name), suffix=SUFFIX)
    os.close(handle)
    return Path(file)


def new_folder(folder: Path, name: str) -> Path:
    """An empty folder for a folder to be; removes what killed writers left of that."""
    _remove_left(folder, name)
    return Path(tempfile.mkdtemp(dir=folder, prefix=_prefix(name), suffix=SUFFIX))


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Says to other processes that a file or folder is being written, until the block ends."""
    handle = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a disk without locks
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


def _prefix(name: str) -> str:
    return f".{name[:50]}."


def _remove_left(folder: Path, name: str) -> None:
    prefix = _prefix(name)
    length = len(prefix) + 8 + len(SUFFIX)
    try:
        unfinished = [path for path in folder.iterdir() if is_unfinished(path) and len(path.name) == length]
    except OSError:  # it can't be listed, or is not there, which who writes says
        return
    for path in unfinished:
        if path.name.startswith(prefix):
            with suppress(OSError):  # in use, gone meanwhile, or another user's
                _remove_unlocked(path)


def _remove_unlocked(path: Path) -> None:
    """Removes what nobody is writing.

    Raises:
        OSError: somebody is, or it can't be removed.
    """
    is_folder = path.is_dir()
    handle = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)  # the latter for locks over a network
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if time.time() - os.fstat(handle).st_mtime < ABANDONED_S:
            return
        if is_folder:
            shutil.rmtree(path)
        else:
            path.unlink()
    finally:
        os.close(handle)
