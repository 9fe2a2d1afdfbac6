"""Hardware-friendly multiples: in which steps of a group's width a device's time falls, 8, 16 or 32."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from autoprune.detectors import detector_inputs
from autoprune.graph import ChannelGraph
from autoprune.latency.machine import LatencySetup
from autoprune.latency.model import fractions_of
from autoprune.latency.operators import find_calls, one_pass
from autoprune.latency.tables import Seconds, time_passes
from autoprune.progress import track

MULTIPLES = (32, 16, 8)
"""From the coarsest, which is the block of widths that is timed, to the finest."""
LARGEST_WASTE = 0.01


def measure_multiples(
    model: nn.Module, graph: ChannelGraph, setup: LatencySetup, seconds: Seconds = time_passes
) -> dict[str, int]:
    """For each group, the coarsest multiple that costs next to no time.

    The operator with the most multiply-adds among those that write the group is timed at every multiple of 8
    in a block of 32 near half its width. A multiple is good where widths rounded up to it take at most 1%
    longer on average: where time falls in stairs of 32, the widths between are a waste; where it falls
    evenly, 8 remains.

    Args:
        model: the dense detector, in eval mode on ``setup.device``.
        graph: its channel groups.
        setup: where to measure.
        seconds: times passes; only tests replace it.

    Returns:
        Multiples by group, without groups narrower than two blocks and those that no plain convolution
        writes.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
    """
    calls = find_calls(model, detector_inputs(setup.input_size, setup.device)[0])
    _, outputs = fractions_of(graph, calls)
    multiples: dict[str, int] = {}
    with setup.torch_threads(), TemporaryDirectory(prefix="autoprune-") as folder:
        for place, name in enumerate(track(graph.cost.names, "multiples of widths")):
            writers = [
                call.operator
                for call, row in zip(calls, outputs, strict=True)
                if row[place] == 1 and call.operator.groups == 1
            ]
            base = int(graph.cost.dense[place]) // 2 // MULTIPLES[0] * MULTIPLES[0]
            if not writers or base == 0:
                continue
            largest = max(writers, key=lambda op: op.inputs * op.outputs * int(np.prod(op.kernel + op.size)))
            passes = {
                str(width): one_pass(largest.narrowed(largest.inputs, width), setup, Path(folder))
                for width in range(base, base + MULTIPLES[0] + 1, MULTIPLES[-1])
            }
            times = {int(width): value for width, value in seconds(passes).items()}
            multiples[name] = _coarsest(times)
    return multiples


def _coarsest(times: Mapping[int, float]) -> int:
    """The coarsest multiple that wastes little of the ``times`` by width; the finest wastes none."""
    good = (multiple for multiple in MULTIPLES if _waste(times, multiple) <= LARGEST_WASTE)
    return next(good, MULTIPLES[-1])


def _waste(times: Mapping[int, float], multiple: int) -> float:
    """Mean relative time lost by rounding widths up to ``multiple``; the block's first needs no rounding."""
    widths = sorted(times)[1:]
    return float(np.mean([times[-(-width // multiple) * multiple] / times[width] - 1 for width in widths]))
