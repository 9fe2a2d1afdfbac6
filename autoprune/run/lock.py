"""The lock that keeps a second process out of a folder, and frees itself when its owner is killed."""

import contextlib
import fcntl
import json
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from autoprune.errors import RunError
from autoprune.files import refuse_dangling, unwritable

TRIES, PAUSE_S = 5, 0.02


@contextmanager
def locked(folder: Path, name: str) -> Iterator[None]:
    """Keeps other processes out of a folder inside the block; creates the folder.

    The lock is the operating system's (`flock`), so it is released as soon as its owner is killed; the host
    and process id in the file are for the message. A folder in which nothing was written is removed again.

    Args:
        folder: what to lock.
        name: of the lock file in it.

    Raises:
        RunError: another process works in the folder (names its host and process id), or it can't be made.
    """
    file = folder / name
    refuse_dangling(folder)
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = _acquire(file)
    except BlockingIOError as error:
        raise RunError(
            f"{folder} is in use by another process ({_owner(file)}); wait for it, stop it, or work in "
            "another folder"
        ) from error
    except OSError as error:
        raise unwritable(file, error) from error
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(handle)
        with contextlib.suppress(OSError):  # a folder that holds something stays
            for path in created:
                path.rmdir()


def is_locked(folder: Path, name: str) -> bool:
    """Whether a process works in a folder; one on another host counts as working while its file is there.

    Not every shared file system shows the locks of other hosts.

    Args:
        folder: what may be locked.
        name: of the lock file in it.

    Raises:
        OSError: the file can't be read.
    """
    try:
        with (folder / name).open() as file:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                if json.loads(file.read())["host"] != socket.gethostname():
                    return True
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)  # closing the file gives it back
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def _acquire(file: Path) -> int:
    """A descriptor that holds the lock; raises `BlockingIOError` where another process holds it.

    A reader holds it for the moment in which it asks (`is_locked`), so the first refusals may be no owner's.
    """
    for _ in range(TRIES - 1):
        with contextlib.suppress(BlockingIOError):
            return _try_to_acquire(file)
        time.sleep(PAUSE_S)
    return _try_to_acquire(file)


def _try_to_acquire(file: Path) -> int:
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Between open and flock its last owner may have removed the file: then try again.
            if _is_at(handle, file):
                owner = {"host": socket.gethostname(), "pid": os.getpid()}
                os.ftruncate(handle, 0)
                os.write(handle, json.dumps(owner).encode())
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def _is_at(handle: int, file: Path) -> bool:
    """Whether a path still leads to the file that a descriptor is of."""
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False


def _owner(file: Path) -> str:
    try:
        owner = json.loads(file.read_text())
        return f"host {owner['host']}, pid {owner['pid']}"
    except (OSError, ValueError, KeyError):
        return "its host and pid are not known yet"
