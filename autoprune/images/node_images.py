"""Decoded images in a file that all processes of a machine map: each is decoded once, by who needs it first.

The workers of a search on one node then take the memory of one. The file lies in the temporary folder, in the
page cache where there is memory, and is removed by the last process that uses it; those of killed processes
are removed by the next that comes.
"""

import contextlib
import fcntl
import os
import tempfile
import weakref
from collections.abc import Iterator, Sequence
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from autoprune.progress import say

SUFFIX = ".pixels"
LEAST_FREE = 2
"""How many times the size of a file must be free on its disk: what is left belongs to others."""


class NodeImages:
    """Images of one set and size.

    Args:
        file: where they are; made where there is none.
        sizes: height and width of each image.

    Raises:
        OSError: the file can't be made, or there is too little room for it.
    """

    def __init__(self, file: Path, sizes: Sequence[tuple[int, int]]) -> None:
        self._sizes = sizes
        ends = len(sizes) + np.cumsum([3 * height * width for height, width in sizes], dtype=np.int64)
        self._starts = [len(sizes), *ends.tolist()]  # before them, a byte for each image: whether it is there
        handle = _open_locked(file, self._starts[-1])
        self._bytes = np.memmap(file, np.uint8, "r+", shape=(self._starts[-1],))
        self._close = weakref.finalize(self, _leave, file, handle)  # also where the process exits

    def get(self, index: int) -> Tensor | None:
        """The image, uint8 [3, height, width], or ``None`` where no process has decoded it."""
        return self._view(index) if self._bytes[index] else None

    def put(self, index: int, image: Tensor) -> Tensor:
        """Keeps an image for all processes; two that decode the same one write the same bytes.

        Returns:
            The image as it is kept.
        """
        kept = self._view(index)
        kept.copy_(image)
        self._bytes[index] = 1  # after the pixels
        return kept

    def close(self) -> None:
        """Leaves the file, and removes it if nobody else uses it; images that it gave stay valid."""
        self._close()

    def _view(self, index: int) -> Tensor:
        height, width = self._sizes[index]
        return torch.from_numpy(self._bytes[self._starts[index] : self._starts[index + 1]]).view(
            3, height, width
        )


def node_images(
    scope: str, sizes: Sequence[tuple[int, int]], limit: int, folder: Path | None = None
) -> NodeImages | None:
    """The images that the processes of this machine keep together.

    Args:
        scope: what decides the pixels: files, sizes, detector, run.
        sizes: height and width of each image.
        limit: bytes that they may take; ``None`` is returned above it.
        folder: where the file lies; ``None`` takes one of the user's in the temporary folder.

    Returns:
        ``None`` also where the file can't be made, after one line that says why: each process then decodes
        for itself.
    """
    if sum(3 * height * width for height, width in sizes) > limit:
        return None
    folder = folder or Path(tempfile.gettempdir()) / f"autoprune-{os.getuid()}"
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if folder.is_symlink() or folder.stat().st_uid != os.getuid():
            raise OSError(f"{folder} is another user's")
        for file in folder.glob(f"*{SUFFIX}"):
            _remove_unused(file)
        return NodeImages(folder / (sha256(scope.encode()).hexdigest()[:32] + SUFFIX), sizes)
    except OSError as error:
        say(f"each worker decodes all images for itself: {error}")
        return None


def _open_locked(file: Path, size: int) -> int:
    """A descriptor of the file, of this size, that says to others that it is in use."""
    while True:
        handle = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_SH)
            if not _is_at(handle, file):  # its last user removed it between open and lock
                os.close(handle)
                continue
            disk = os.fstatvfs(handle)
            if os.fstat(handle).st_size < size:
                if disk.f_bavail * disk.f_frsize < LEAST_FREE * size:
                    raise OSError(
                        f"the disk of {file.parent} has less than {LEAST_FREE} x {size:,} bytes free"
                    )
                reserve = getattr(os, "posix_fallocate", None)  # macOS has none
                # a disk that is full at some later write to mapped memory ends the process
                os.ftruncate(handle, size) if reserve is None else reserve(handle, 0, size)
            return handle
        except BaseException:
            with contextlib.suppress(OSError):
                _leave(file, handle)
            raise


def _leave(file: Path, handle: int) -> None:
    with _alone(file, handle) as alone:
        if alone:
            file.unlink(missing_ok=True)
    os.close(handle)


def _remove_unused(file: Path) -> None:
    """Removes what killed processes left."""
    with contextlib.suppress(FileNotFoundError):
        _leave(file, os.open(file, os.O_RDWR))


@contextlib.contextmanager
def _alone(file: Path, handle: int) -> Iterator[bool]:
    """Whether no other process uses the file, which none can begin to inside the block."""
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield _is_at(handle, file)


def _is_at(handle: int, file: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), file.stat())
    except FileNotFoundError:
        return False
