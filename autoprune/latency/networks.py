"""Measured latency of whole networks, and pruned networks of any widths to measure."""

import time
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from autoprune.detectors import detector_inputs, pixel_resizing
from autoprune.detectors.inputs import network_size
from autoprune.graph import ChannelGraph, prune
from autoprune.images.decode import resized_size
from autoprune.latency.machine import LatencySetup
from autoprune.latency.runners import NETWORK, Clock, Run, in_file, in_torch
from autoprune.latency.timing import Latency, interleaved
from autoprune.space.space import Space, Widths

PASSES = 15


def measure_networks(
    models: Iterable[nn.Module],
    setup: LatencySetup,
    passes: int = PASSES,
    clock: Clock = time.perf_counter,
) -> list[Latency]:
    """Times the networks of detectors, interleaved, one image per pass.

    Args:
        models: in eval mode, on ``setup.device``.
        setup: where to measure, and at what size.
        passes: timed passes of each.
        clock: seconds, rising; on a machine with other work, benchmarks pass the process' own CPU time.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
    """
    runs: dict[str, Run] = {}
    with setup.torch_threads(), ExitStack() as stack:
        for number, model in enumerate(models):
            if setup.runtime == "torch":
                images = detector_inputs(setup.input_size, setup.device)[0]
                runs[str(number)] = in_torch(model.eval(), images, clock)
                continue
            model = model.to("cpu").eval()
            inside = resized_size(setup.input_size, pixel_resizing(model))
            (images,) = detector_inputs(setup.input_size)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="autoprune-")))
            try:
                runs[str(number)] = in_file(
                    model,
                    images,
                    inside,
                    setup.runtime,
                    str(setup.device),
                    setup.threads,
                    folder,
                    clock,
                )
            finally:  # one may be the caller's own
                model.to(setup.device)
        latencies = interleaved(runs, passes)
    return [stages[NETWORK] for stages in latencies.values()]


def latency_row(
    setup: LatencySetup, model: nn.Module, latency: Latency, dense: tuple[nn.Module, Latency] | None = None
) -> dict[str, Any]:
    """A row of `latency.json`.

    Args:
        setup: where it was measured, and with images of what size.
        model: the pruned detector, in eval mode.
        latency: its network's.
        dense: the dense detector, in eval mode, and its network's latency, timed interleaved with the other.
    """
    row = {"label": setup.label_of(model), **asdict(latency)}
    if dense is not None:
        row["dense_ms"] = dense[1].median_ms
        if (seen := network_size(dense[0], setup.input_size)) != network_size(model, setup.input_size):
            row["dense_network_size"] = list(seen)
    return row


def sample_widths(space: Space, count: int, seed: int = 0) -> list[Widths]:
    """Widths [G] spread over the space: the dense ones, the lowest, and random ones at levels between."""
    random = np.random.default_rng(seed)
    samples = [space.dense, space.lowest]
    for level in np.linspace(0.1, 0.9, max(count - 2, 0)):
        fractions = np.clip(random.normal(level, 0.25, len(space.variables)), 0, 1)
        samples.append(space.widths(fractions))
    return samples[:count]


def prune_to(model: nn.Module, graph: ChannelGraph, widths: Widths) -> nn.Module:
    """A dense detector with the first channels of each group; its latency does not depend on which they are.

    Args:
        model: the dense detector.
        graph: its channel groups.
        widths: [G], channels to keep of each group.
    """
    keep: dict[str, Sequence[int]] = {}
    for name, width in zip(graph.cost.names, widths, strict=True):
        group = graph.groups[name]
        if width < group.width:
            keep[name] = sorted(group.units[: width // group.unit].ravel().tolist())
    return prune(model, graph, keep)
