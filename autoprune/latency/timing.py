"""Interleaved timing of several detectors, so that a drift of the machine affects all of them equally."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from autoprune.progress import track

REPEATS = 20
WARMUP = 3


@dataclass(frozen=True)
class Latency:
    """Distribution of the time of one forward pass, in milliseconds.

    Attributes:
        median_ms: the figure to quote.
        p10_ms: 10th percentile.
        p90_ms: 90th percentile.
        repeats: timed passes.
    """

    median_ms: float
    p10_ms: float
    p90_ms: float
    repeats: int

    def __str__(self) -> str:
        """The median with its spread, such as ``12.3 ms (11.9 to 13.0)``."""
        return f"{self.median_ms:.1f} ms ({self.p10_ms:.1f} to {self.p90_ms:.1f})"


def measure(
    models: Mapping[str, nn.Module],
    inputs: Sequence[Any],
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    device: torch.device | str = "cpu",
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, Latency]:
    """Times ``model(*inputs)`` of each model.

    Each round runs every model once, every other round in the reverse order, so that a slow drift (heat,
    another job) cancels in the comparison. On CUDA the clock is read after the device has finished.

    Args:
        models: name → detector, all on ``device``; timed in eval mode and put back into their own mode.
        inputs: arguments of one forward pass, on ``device``.
        repeats: timed passes of each model, at least 1.
        warmup: untimed passes of each before them, 0 or more.
        device: where the models are.
        clock: seconds, rising; only tests replace it.

    Raises:
        ValueError: ``repeats`` or ``warmup`` is too small.
    """
    finish = _finisher(torch.device(device))

    def timed(model: nn.Module) -> Callable[[], dict[str, float]]:
        def run() -> dict[str, float]:
            finish()
            start = clock()
            model(*inputs)
            finish()
            return {"": clock() - start}

        return run

    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode())
        for model in models.values():
            stack.enter_context(_evaluating(model))
        latencies = interleaved({name: timed(model) for name, model in models.items()}, repeats, warmup)
    return {name: stages[""] for name, stages in latencies.items()}


def interleaved(
    runs: Mapping[str, Callable[[], Mapping[str, float]]],
    repeats: int = REPEATS,
    warmup: int = WARMUP,
    quiet: bool = False,
) -> dict[str, dict[str, Latency]]:
    """Runs each once per round, every other round in the reverse order, so that a drift cancels.

    Args:
        runs: name → one pass, which returns the seconds of each of its stages.
        repeats: timed passes of each, at least 1.
        warmup: untimed passes of each before them, 0 or more.
        quiet: show no progress.

    Returns:
        For each name, the latency of each stage.

    Raises:
        ValueError: ``repeats`` or ``warmup`` is too small.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1, not {repeats}")
    if warmup < 0:
        raise ValueError(f"warmup must be at least 0, not {warmup}")
    order = list(runs)
    seconds: dict[str, list[Mapping[str, float]]] = {name: [] for name in order}
    rounds = range(warmup + repeats)
    for number in rounds if quiet else track(rounds, "latency"):
        for name in order if number % 2 == 0 else reversed(order):
            stages = runs[name]()
            if number >= warmup:
                seconds[name].append(stages)
    return {
        name: {stage: _summary([each[stage] for each in passes]) for stage in passes[0]}
        for name, passes in seconds.items()
    }


def _summary(seconds: Sequence[float]) -> Latency:
    p10, median, p90 = (float(value) for value in np.percentile(np.asarray(seconds) * 1e3, [10, 50, 90]))
    return Latency(median_ms=median, p10_ms=p10, p90_ms=p90, repeats=len(seconds))


def _finisher(device: torch.device) -> Callable[[], None]:
    """A function that waits until the device has finished its work."""
    if device.type == "cuda":
        return lambda: torch.cuda.synchronize(device)
    return lambda: None


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
