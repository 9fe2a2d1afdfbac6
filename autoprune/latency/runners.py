"""One timed pass of a detector in a runtime, with preprocessing, network and postprocessing apart."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import ConfigError
from autoprune.runtimes.onnx import write_raw_heads, write_whole
from autoprune.runtimes.raw_heads import RawHeads, has_raw_heads, resize_and_pad
from autoprune.runtimes.sessions import open_session

Run = Callable[[], dict[str, float]]
"""One pass; returns the seconds of each stage that can be separated."""

PRE, NETWORK, POST = "preprocessing", "network", "postprocessing"
STAGES = (PRE, NETWORK, POST)

Clock = Callable[[], float]


def in_torch(model: nn.Module, images: Sequence[Tensor], clock: Clock = time.perf_counter) -> Run:
    """A detector in torch, as it is.

    The network is all that runs from the first of the model's children with parameters to the last; in a
    detector of two stages that includes the choice of proposals.

    Args:
        model: in eval mode, on the images' device.
        images: each [3, height, width].
        clock: seconds, rising; only tests replace it.
    """
    device = images[0].device
    parts = [child for child in model.children() if next(child.parameters(), None) is not None]

    def now() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return clock()

    def run() -> dict[str, float]:
        marks: list[float] = []

        def mark(*_: Any) -> None:
            marks.append(now())

        hooks = [child.register_forward_pre_hook(mark) for child in parts]
        hooks += [child.register_forward_hook(mark) for child in parts]
        try:
            with torch.inference_mode():
                begin = now()
                model(list(images))
                end = now()
        finally:
            for hook in hooks:
                hook.remove()
        # without such children, all of it is network
        first, last = (marks[0], marks[-1]) if marks else (begin, end)
        return {PRE: first - begin, NETWORK: last - first, POST: end - last}

    return run


def in_file(
    model: nn.Module,
    images: Sequence[Tensor],
    network_size: tuple[int, int],
    runtime: str,
    device: str,
    threads: int | None,
    folder: Path,
    clock: Clock = time.perf_counter,
) -> Run:
    """A detector in ONNX Runtime or OpenVINO: its raw heads, or the whole of it where it has none.

    Args:
        model: in eval mode, on the CPU.
        images: each [3, height, width], on the CPU.
        network_size: height and width of the network's own input.
        runtime: a key of `runtimes.sessions.RUNTIMES` that reads ONNX.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads; ``None`` for torch's own number.
        folder: for the ONNX file, which must exist as long as the pass is used.
        clock: seconds, rising; only tests replace it.

    Raises:
        ConfigError: the runtime is not installed or has no such device, or there are several images and the
            detector takes one at a time.
        ModelError: the detector can't be expressed in ONNX.
    """
    path = folder / "latency.onnx"
    if not has_raw_heads(model):
        if len(images) > 1:
            raise ConfigError(
                f"{type(model).__name__} in {runtime} takes one image at a time; give --batch 1, or "
                "--runtime torch"
            )
        write_whole(model, images[0], path)
        session, image = open_session(path, runtime, device, threads), images[0].numpy()

        def whole() -> dict[str, float]:
            begin = clock()
            session(image)
            return {NETWORK: clock() - begin}

        return whole
    raw = RawHeads(model, network_size)
    write_raw_heads(raw, path, len(images))
    session, frame = open_session(path, runtime, device, threads), raw.frame

    def run() -> dict[str, float]:
        begin = clock()
        inputs = [resize_and_pad(image, frame) for image in images]
        batch = np.concatenate([pixels for pixels, _ in inputs])
        ready = clock()
        boxes, scores = session(batch)
        done = clock()
        for number, (_, size) in enumerate(inputs):
            frame.detections(boxes[number], scores[number], size)
        end = clock()
        return {PRE: ready - begin, NETWORK: done - ready, POST: end - done}

    return run
