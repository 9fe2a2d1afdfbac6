"""The steps in which a device's time falls with a group's width: 8 channels on many, 16 or 32 on some."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from autoprune.graph import ChannelGraph
from autoprune.latency.model import Seconds, fractions_of, time_passes
from autoprune.latency.operators import Call, one_pass
from autoprune.progress import track

STEPS = (32, 16, 8)
"""From the coarsest, which is the block of widths that is timed, to the finest."""
WASTE = 0.01


def measured_steps(
    graph: ChannelGraph,
    calls: Sequence[Call],
    runtime: str,
    device: torch.device,
    threads: int | None,
    folder: Path,
    seconds: Seconds = time_passes,
) -> dict[str, int]:
    """For each group, the coarsest step that costs next to nothing.

    The dearest operator that makes the group's channels is timed at every multiple of 8 in a block of 32
    about half its width. A step is good where widths rounded up to it take at most 1% longer on average:
    where time falls in stairs of 32, widths between are a waste; where it falls evenly, 8 is left.

    Args:
        graph: the channel groups.
        calls: the operators of one pass.
        runtime: ``torch``, ``onnxruntime`` or ``openvino``.
        device: where.
        threads: CPU threads of the runtimes other than torch; ``None`` for torch's number.
        folder: for files in between.
        seconds: times passes; only tests replace it.

    Returns:
        Steps by group; groups narrower than two blocks, and those whose channels no plain convolution makes,
        are left out.
    """
    _, outputs = fractions_of(graph, calls)
    found: dict[str, int] = {}
    for place, name in enumerate(track(graph.cost.names, "steps of widths")):
        makers = [
            call.operator
            for call, row in zip(calls, outputs, strict=True)
            if row[place] == 1 and call.operator.groups == 1
        ]
        base = int(graph.cost.dense[place]) // 2 // STEPS[0] * STEPS[0]
        if not makers or base == 0:
            continue
        dearest = max(makers, key=lambda op: op.inputs * op.outputs * int(np.prod(op.kernel + op.size)))
        widths = range(base, base + STEPS[0] + 1, STEPS[-1])
        passes = {
            str(width): one_pass(dearest.narrowed(dearest.inputs, width), runtime, device, threads, folder)
            for width in widths
        }
        times = {int(width): value for width, value in seconds(passes).items()}
        found[name] = next(step for step in STEPS if step == STEPS[-1] or _waste(times, step) <= WASTE)
    return found


def _waste(times: Mapping[int, float], step: int) -> float:
    """Mean relative time that widths lose by being rounded up to ``step``; the block's first is no gain."""
    widths = sorted(times)[1:]
    return float(np.mean([times[-(-width // step) * step] / times[width] - 1 for width in widths]))
