"""The times of a network's operators over a grid of their widths, by interleaved timing."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from autoprune.latency.machine import LatencySetup
from autoprune.latency.operators import Call, Operator, one_pass
from autoprune.latency.timing import interleaved
from autoprune.progress import track

Array = NDArray[np.float64]
Seconds = Callable[[Mapping[str, Callable[[], object]]], Mapping[str, float]]
"""From passes by name to the seconds of each."""

GRID = (0.0, 0.125, 0.25, 0.5, 0.75, 1.0)
"""Fractions of a dense width that operators are timed at; 0 stands for the smallest width, `STEP`."""
STEP = 8
REPEATS = 5
WARMUP = 2


def measure_tables(
    calls: Sequence[Call],
    setup: LatencySetup,
    folder: Path,
    seconds: Seconds | None = None,
) -> Array:
    """Times every operator over the grid of its widths; equal operators once.

    Args:
        calls: what a network runs.
        setup: where to measure.
        folder: for temporary files.
        seconds: times passes; only tests and benchmarks replace it.

    Returns:
        [C, P, Q] milliseconds; see `LatencyModel`.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
    """
    seconds = seconds or time_passes
    table_of: dict[Operator, Array] = {}
    times: dict[Operator, float] = {}
    for operator in track(list(dict.fromkeys(call.operator for call in calls)), "latency of operators"):
        points = {
            (p, q): operator.narrowed(_width(operator.inputs, GRID[p]), _width(operator.outputs, GRID[q]))
            for p in range(len(GRID))
            for q in range(len(GRID))
            if operator.groups == 1 or p == q
        }
        new = [narrowed for narrowed in dict.fromkeys(points.values()) if narrowed not in times]
        passes = {str(n): one_pass(op, setup, folder) for n, op in enumerate(new)}
        with setup.torch_threads():
            taken = seconds(passes)
        times |= {narrowed: 1e3 * taken[str(n)] for n, narrowed in enumerate(new)}
        table = np.zeros((len(GRID), len(GRID)))
        for (p, q), narrowed in points.items():
            if operator.groups == 1:
                table[p, q] = times[narrowed]
            else:  # inputs and outputs go together
                table[p, :] = times[narrowed]
        # more channels never take less time: a search for the widest that fits relies on it
        table_of[operator] = np.maximum.accumulate(np.maximum.accumulate(table, 0), 1)
    return np.stack([table_of[call.operator] for call in calls])


def time_passes(
    passes: Mapping[str, Callable[[], object]], clock: Callable[[], float] = time.perf_counter
) -> dict[str, float]:
    """Seconds of each pass, by interleaved timing."""

    def timed(run: Callable[[], object]) -> Callable[[], dict[str, float]]:
        def once() -> dict[str, float]:
            start = clock()
            run()
            return {"": clock() - start}

        return once

    if not passes:
        return {}
    latencies = interleaved({name: timed(run) for name, run in passes.items()}, REPEATS, WARMUP, quiet=True)
    # the least disturbed passes; the correction makes up for what disturbs all of them
    return {name: stages[""].p10_ms / 1e3 for name, stages in latencies.items()}


def _width(dense: int, fraction: float) -> int:
    """A fraction of the dense width, rounded to `STEP`, at least one step; the dense width itself at 1."""
    if fraction == 1:
        return dense
    return min(dense, max(STEP, round(dense * fraction / STEP) * STEP))
