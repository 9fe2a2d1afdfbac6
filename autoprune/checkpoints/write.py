"""Writing tensors: the whole file or none of it, and one line where the disk is full."""

import errno
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from autoprune.files import replacing


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a safetensors file atomically.

    Args:
        path: file to write.
        tensors: on the CPU, contiguous; none is a part of another.
        metadata: texts for the file's header.

    Raises:
        RunError: the disk is full, or the folder can't be written to.
    """
    with replacing(path) as temporary:
        try:
            save_file(dict(tensors), temporary, dict(metadata) if metadata else None)
        except SafetensorError as error:  # the library has no class for what the operating system refused
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
