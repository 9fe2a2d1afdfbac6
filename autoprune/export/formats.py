"""Writes a detector for other runtimes, and keeps the file only where it finds what the detector finds."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from autoprune.data.coco import Split
from autoprune.errors import ModelError
from autoprune.export import parity
from autoprune.export.parity import Finder, Parity, Pictures
from autoprune.files import replacing
from autoprune.runtimes.extras import need
from autoprune.runtimes.onnx import write_raw_heads, write_whole
from autoprune.runtimes.raw_heads import RawHeads
from autoprune.runtimes.sessions import Session, open_session

WHOLE_ONNX = "model.onnx"
RAW_HEADS_ONNX = "raw_heads.onnx"
RAW_HEADS_PT2 = "raw_heads.pt2"

Images = Split | Pictures


def write_onnx(detector: nn.Module, folder: Path, images: Images, count: int) -> tuple[Path, Parity]:
    """Writes the whole detector as ONNX, with its resizing and its non-maximum suppression.

    Args:
        detector: in eval mode, on the CPU.
        folder: where `model.onnx` goes.
        images: real ones, to compare on; the largest of the first few is what is traced.
        count: images to compare on, at most.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        ModelError: the detector can't be expressed in ONNX.
        ExportError: ONNX Runtime finds something else in the file than torch in the detector.
    """
    need("onnxruntime")
    path = folder / WHOLE_ONNX
    example = images.batch([0])[0][0] if isinstance(images, Split) else images[0]
    names = write_whole(detector, example, path)
    session = open_session(path, "onnxruntime")
    return path, _checked(path, parity.whole(detector), parity.whole_file(session, names), images, count)


def write_raw(
    detector: nn.Module, folder: Path, images: Images, count: int, input_size: tuple[int, int], format: str
) -> tuple[Path, Parity]:
    """Writes the raw heads of a one-stage detector, as ONNX or as a program of torch.export.

    Args:
        detector: in eval mode, on the CPU.
        folder: where the file goes.
        images: real ones, to compare on.
        count: images to compare on, at most.
        input_size: height and width of the fixed input; see `RawHeads`.
        format: ``onnx`` or ``pt2``.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        ModelError: the detector has two stages, or the exporter can't express it.
        ExportError: the file gives something else than the detector.
    """
    model = RawHeads(detector, input_size)
    path = folder / (RAW_HEADS_ONNX if format == "onnx" else RAW_HEADS_PT2)
    if format == "onnx":
        need("onnxruntime")
        write_raw_heads(model, path)
        session = open_session(path, "onnxruntime")
    else:
        session = _write_program(model, path)
    finder = parity.raw_heads_file(session, model.frame)
    return path, _checked(path, parity.placed(detector, model.frame), finder, images, count)


def _write_program(model: RawHeads, path: Path) -> Session:
    """Writes raw heads through torch.export, and reads them back as a session."""
    example = torch.rand(1, 3, model.frame.height, model.frame.width)
    try:
        program = torch.export.export(model, (example,))
    except Exception as error:  # whatever the detector's own code made it stumble on
        problem = " ".join(str(error).split())[:300]
        raise ModelError(
            f"torch.export can't express this detector ({type(error).__name__}: {problem}); try --format onnx"
        ) from error
    with replacing(path) as temporary, temporary.open("wb") as file:
        torch.export.save(program, file, extra_files={"frame.json": model.frame.to_json()})
    read: Callable[..., tuple[torch.Tensor, ...]] = torch.export.load(path).module()

    def run(image: object) -> list[object]:
        with torch.inference_mode():
            return [tensor.numpy() for tensor in read(torch.as_tensor(image))]

    return run  # type: ignore[return-value]


def _checked(path: Path, detector: Finder, file: Finder, images: Images, count: int) -> Parity:
    """Compares; a file that fails is deleted."""
    try:
        found = parity.compare(detector, file, images, count)
        found.check(path.name)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return found
