"""Where and how a latency is measured, and its label: device, runtime, versions."""

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from autoprune.detectors.inputs import size_text
from autoprune.errors import RunError
from autoprune.fields import is_vendor
from autoprune.runtimes.sessions import find_runtime

CPUINFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class LatencySetup:
    """Where and how a network's latency is measured.

    Attributes:
        runtime: a key of `runtimes.sessions.RUNTIMES`.
        device: where the network runs.
        threads: CPU threads; ``None`` for torch's own number, which the other runtimes then use too.
        input_size: height and width of an image in pixels.
        batch: images per pass.
    """

    runtime: str
    device: torch.device
    threads: int | None
    input_size: tuple[int, int]
    batch: int = 1

    @property
    def label(self) -> str:
        """Device, threads, runtime with its version, batch and size of the images, in one line.

        Raises:
            ConfigError: the runtime is unknown or not installed.
        """
        return self._label("{}x{}".format(*self.input_size))

    def label_of(self, model: nn.Module) -> str:
        """The label of a detector's own figures: with the size that its network sees, if it is another.

        Args:
            model: the detector, in eval mode.

        Raises:
            ConfigError: the runtime is unknown or not installed.
        """
        return self._label(size_text(model, self.input_size))

    @contextmanager
    def torch_threads(self) -> Iterator[None]:
        """Gives torch the threads in this block; a search on Ray measures with those of its workers."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads or before)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def _label(self, size: str) -> str:
        if self.device.type == "cuda":
            device = torch.cuda.get_device_name(self.device)
        else:
            count = self.threads or torch.get_num_threads()
            device = f"{processor()}, {count} thread{'s' if count > 1 else ''}"
        runtime = f"{self.runtime} {find_runtime(self.runtime).version}"
        return f"{device}, {runtime}, batch {self.batch}, {size}"


def measured_elsewhere(run: Path, before: str, now: str) -> RunError:
    """The refusal of a run whose latencies are from elsewhere.

    Args:
        run: its directory.
        before: label of what measured them.
        now: label of this device and runtime.
    """
    return RunError(
        f"{run} has its latencies from {before}, and this is {now}; resume it there, or choose another --out"
    )


def processor() -> str:
    """Name of the processor."""
    if CPUINFO.is_file():
        for line in CPUINFO.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()


def versions(model: str | None = None) -> str:
    """Versions of what a detector is made with: ``autoprune 0.1.0, torch 2.8.0, torchvision 0.23.0``.

    Args:
        model: name of the detector, where that counts; one of a vendor adds the vendor's library.
    """
    from autoprune import __version__

    shown = f"autoprune {__version__}, torch {torch.__version__}, torchvision {version('torchvision')}"
    if model is None or not is_vendor(model):
        return shown
    library = model.partition(":")[0]
    return f"{shown}, {library} {version(library)}"
