"""The label of a measurement: what it was taken on, with versions."""

import platform
from importlib.metadata import version
from pathlib import Path

import torch

from autoprune.runtimes.extras import need

CPUINFO = Path("/proc/cpuinfo")


def label(runtime: str, device: torch.device, threads: int | None, batch: int, size: tuple[int, int]) -> str:
    """Device, threads, runtime with its version, batch and input, in one line.

    Args:
        runtime: ``torch``, ``onnxruntime`` or ``openvino``.
        device: where it runs.
        threads: CPU threads; ``None`` for torch's own number, which other runtimes get too.
        batch: images at once.
        size: height and width of an image.
    """
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        count = threads or torch.get_num_threads()
        where = f"{processor()}, {count} thread{'s' if count > 1 else ''}"
    return f"{where}, {runtime} {_version(runtime)}, batch {batch}, {size[0]}x{size[1]}"


def processor() -> str:
    """Name of the processor."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def versions() -> str:
    """Of what a detector is made with: ``autoprune 0.1.0, torch 2.8.0, torchvision 0.23.0``."""
    from autoprune import __version__

    return f"autoprune {__version__}, torch {torch.__version__}, torchvision {version('torchvision')}"


def _version(runtime: str) -> str:
    if runtime == "torch":
        return str(torch.__version__)
    need(runtime)
    return version(runtime) if runtime == "openvino" else str(need(runtime).__version__)
