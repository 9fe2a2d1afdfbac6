"""Programs of torch.export: the raw heads of a detector, without its code."""

import io
from pathlib import Path

import torch

from autoprune.errors import ModelError, is_out_of_memory
from autoprune.files import write_bytes
from autoprune.runtimes.raw_heads import RawHeads


def write_program(model: RawHeads, path: Path) -> None:
    """Writes raw heads as a program, which the runtime `torch` reads.

    Args:
        model: on the CPU.
        path: file to write, whole or not at all; its `Frame` is in it as ``frame.json``.

    Raises:
        ModelError: torch.export can't express the detector.
    """
    example = torch.rand(1, 3, model.frame.height, model.frame.width)
    try:
        program = torch.export.export(model, (example,))
    except Exception as error:  # the exporter raises whatever the detector's own code made it fail on
        if is_out_of_memory(error):
            raise
        problem = " ".join(str(error).split())[:300]
        raise ModelError(
            f"torch.export can't express this detector ({type(error).__name__}: {problem}); try --format onnx"
        ) from error
    file = io.BytesIO()  # torch's own writer ends the process where a disk is full
    torch.export.save(program, file, extra_files={"frame.json": model.frame.to_json()})
    write_bytes(path, file.getbuffer())
