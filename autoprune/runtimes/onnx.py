"""ONNX files: a whole detector with its non-maximum suppression, or its raw heads."""

import logging
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError, is_out_of_memory
from autoprune.files import replacing
from autoprune.process import loggers_at
from autoprune.runtimes.extras import need
from autoprune.runtimes.onnx_operators import OPSET, more_operators
from autoprune.runtimes.raw_heads import RawHeads
from autoprune.vendors import VendorDetector

FRAME_KEY = "autoprune.frame"
DETECTIONS = ("boxes", "scores", "labels", "masks", "keypoints", "keypoints_scores")


def write_whole(detector: nn.Module, example: Tensor, path: Path) -> tuple[str, ...]:
    """Writes a whole detector: resizing, network, non-maximum suppression.

    The file takes one ``image``, float32 [3, height, width] of any size in [0, 1], and returns ``boxes``
    [n, 4], ``scores`` [n] and ``labels`` [n], with masks or keypoints where the detector has them. That of
    another library's detector takes images of the example's size alone, as its resizing is traced for it.

    Args:
        detector: in eval mode, on the CPU.
        example: [3, height, width]; a real image, so that there are detections to trace.
        path: file to write, whole or not at all.

    Returns:
        The names of the outputs.

    Raises:
        ModelError: the exporter can't express the detector.
    """
    with torch.inference_mode():
        (detections,) = detector([example])
    names = tuple(name for name in DETECTIONS if name in detections)
    _export(
        _Whole(detector, names),
        example,
        path,
        inputs=["image"],
        outputs=list(names),
        dynamic_axes={
            **({} if isinstance(detector, VendorDetector) else {"image": {1: "height", 2: "width"}}),
            **{name: {0: "detections"} for name in names},
        },
        metadata={},
    )
    return names


def write_raw_heads(model: RawHeads, path: Path, batch: int = 1) -> None:
    """Writes raw heads for a fixed number of images; see `decode_raw_heads` for their input and outputs.

    Raises:
        ModelError: the exporter can't express the detector.
    """
    frame = model.frame
    example = torch.rand(batch, 3, frame.height, frame.width, generator=torch.Generator().manual_seed(0))
    _export(
        model,
        example,
        path,
        inputs=["image"],
        outputs=["boxes", "scores"],
        dynamic_axes={},
        metadata={FRAME_KEY: frame.to_json()},
    )


class _Whole(nn.Module):
    """A detector of one image, with its outputs in a fixed order."""

    def __init__(self, detector: nn.Module, names: Sequence[str]) -> None:
        super().__init__()
        self.detector, self.names = detector, tuple(names)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        (detections,) = self.detector([image])
        return tuple(detections[name] for name in self.names)


def _export(
    model: nn.Module,
    example: Tensor,
    path: Path,
    inputs: list[str],
    outputs: list[str],
    dynamic_axes: dict[str, dict[int, str]],
    metadata: dict[str, str],
) -> None:
    """Traces ``model``, writes it and checks the file.

    It uses the exporter that traces (``dynamo=False``): torch.export, on which the newer one is built, does
    not support a number of detections that depends on the data (torch 2.15).
    """
    onnx = need("onnx")
    with replacing(path) as temporary:
        try:
            with _quiet(), more_operators(), torch.no_grad():
                torch.onnx.export(
                    model.eval(),
                    (example,),
                    str(temporary),
                    dynamo=False,
                    opset_version=OPSET,
                    input_names=inputs,
                    output_names=outputs,
                    dynamic_axes=dynamic_axes,
                )
        except Exception as error:  # the exporter raises errors of any kind
            if isinstance(error, OSError) or is_out_of_memory(error):
                raise
            problem = " ".join(str(error).split())[:300]
            raise ModelError(
                f"torch's ONNX exporter can't express this detector ({type(error).__name__}: {problem}); "
                "try --raw-heads, or another torch"
            ) from error
        file = onnx.load(str(temporary))
        for key, value in metadata.items():
            file.metadata_props.add(key=key, value=value)
        onnx.checker.check_model(file)
        temporary.write_bytes(file.SerializeToString())


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences the exporter's warnings of values that it takes for constants; the parity check decides."""
    loggers = (logging.getLogger(name) for name in ("torch.onnx", "torch.jit"))
    with warnings.catch_warnings(), loggers_at(logging.ERROR, *loggers):
        warnings.simplefilter("ignore")
        yield
