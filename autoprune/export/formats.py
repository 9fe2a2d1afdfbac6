"""Writes a detector for other runtimes, and keeps the file only where it has the detector's detections."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from torch import nn

from autoprune.data.coco import Split
from autoprune.errors import ConfigError, ExportError
from autoprune.export import parity
from autoprune.export.folder import largest_difference
from autoprune.export.parity import Detect, Parity, Pictures
from autoprune.progress import say
from autoprune.runtimes.extras import need
from autoprune.runtimes.onnx import write_raw_heads, write_whole
from autoprune.runtimes.raw_heads import RawHeads, only_input
from autoprune.runtimes.sessions import open_session
from autoprune.runtimes.torch_export import write_program
from autoprune.vendors import VendorDetector

WHOLE_ONNX = "model.onnx"
RAW_HEADS_ONNX = "raw_heads.onnx"
RAW_HEADS_PT2 = "raw_heads.pt2"
VENDOR_PT = "model.pt"
OWN_FORMATS = ("ultralytics", "transformers")
"""Libraries with a format of their own, of the same name."""

Images = Split | Pictures


def write_onnx(detector: nn.Module, folder: Path, images: Images, count: int) -> tuple[Path, Parity]:
    """Writes the whole detector as ONNX, with its resizing and its non-maximum suppression.

    That of another library's detector takes images of the most common size alone (see `write_whole`).

    Args:
        detector: in eval mode, on the CPU.
        folder: where `model.onnx` goes.
        images: real ones, to compare on; the first that the file takes is traced.
        count: images to compare on, at most.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        ModelError: the detector can't be expressed in ONNX.
        ExportError: the file in ONNX Runtime has other detections than the detector in torch.
    """
    need("onnxruntime")
    path = folder / WHOLE_ONNX
    size = Counter(images.sizes).most_common(1)[0][0] if isinstance(detector, VendorDetector) else None
    first = 0 if size is None else images.sizes.index(size)
    if size is not None and (fitting := images.sizes.count(size)) < len(images):
        say(
            f"{path.name} takes images of {_shown(size)} pixels alone, which {fitting} of {len(images)} have "
            "when resized; it is compared on these"
        )
    names = write_whole(detector, parity.image_of(images, first), path)
    session = open_session(path, "onnxruntime")
    file = parity.whole_file(session, names)
    return path, _checked(path, parity.whole(detector), file, images, count, size)


def write_vendor(
    detector: nn.Module, folder: Path, library: str, labels: Mapping[int, str], input_size: tuple[int, int]
) -> Path:
    """Writes a detector of another library as that library's own file, and reads it back.

    Args:
        detector: in eval mode, on the CPU.
        folder: where the file goes.
        library: whose file it is to be, one of `VENDORS`.
        labels: the name of each label, for the file; empty to keep those that the detector has.
        input_size: height and width of the image that both are compared on.

    Raises:
        ConfigError: the detector is not of this library, or the library has no such file.
        ModelError: it can't be expressed there.
        ExportError: what was read back has other outputs.
    """
    if not isinstance(detector, VendorDetector) or detector.library != library:
        raise ConfigError(f"--format {library} is for detectors of {library}, and {instead_of(detector)}")
    path = folder / VENDOR_PT
    read_back = detector.write(path, labels)
    if (difference := largest_difference(detector, read_back, input_size)) != 0:
        path.unlink(missing_ok=True)
        raise ExportError(f"{path.name} has other outputs than the detector: they differ by {difference:.3g}")
    return path


def instead_of(detector: nn.Module) -> str:
    """What a detector is for which another library's format was asked, and the format that it has."""
    library = detector.library if isinstance(detector, VendorDetector) else ""
    what = f"this is one of {library}" if library else "this is no such one"
    return f"{what}; give --format {library if library in OWN_FORMATS else 'onnx'}"


def write_raw(
    detector: nn.Module, folder: Path, images: Images, count: int, input_size: tuple[int, int], format: str
) -> tuple[Path, Parity]:
    """Writes the raw heads of a detector, as ONNX or as a program of torch.export.

    Args:
        detector: in eval mode, on the CPU.
        folder: where the file goes.
        images: real ones, to compare on.
        count: images to compare on, at most.
        input_size: height and width of the fixed input; see `RawHeads`.
        format: ``onnx`` or ``pt2``.

    Raises:
        ConfigError: onnx or onnxruntime is not installed.
        ModelError: the detector has no raw heads, or the exporter can't express them.
        ExportError: the file has other detections than the detector.
    """
    model = RawHeads(detector, input_size)
    if (size := (model.frame.height, model.frame.width)) != input_size and only_input(detector) is None:
        say(f"raw heads for {_shown(size)} pixels, not {_shown(input_size)}: the detector pads to that")
    path = folder / (RAW_HEADS_ONNX if format == "onnx" else RAW_HEADS_PT2)
    if format == "onnx":
        need("onnxruntime")
        write_raw_heads(model, path)
        session = open_session(path, "onnxruntime")
    else:
        write_program(model, path)
        session = open_session(path, "torch")
    reference, file = parity.padded(detector, model.frame), parity.raw_heads_file(session, model.frame)
    return path, _checked(path, reference, file, images, count)


def _shown(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"


def _checked(
    path: Path,
    detector: Detect,
    file: Detect,
    images: Images,
    count: int,
    size: tuple[int, int] | None = None,
) -> Parity:
    """Compares the detections; a file that fails is deleted."""
    try:
        result = parity.compare(detector, file, images, count, size)
        result.check(path.name)
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return result
