"""Latency in the search: a network's measured time in the run's runtime, and the model that predicts it."""

from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import nn

from autoprune.cost.budget import Budget, parse_budget
from autoprune.cost.latency import Latency, in_turns
from autoprune.data.images import resized_size
from autoprune.deploy.machine import label
from autoprune.deploy.operators import find_calls
from autoprune.deploy.runners import NETWORK, Run, in_file, in_torch
from autoprune.graph import ChannelGraph, prune
from autoprune.models import detector_inputs, resize_rule
from autoprune.progress import say
from autoprune.search.latency_model import (
    GRID,
    LatencyModel,
    correct,
    features,
    left_out_errors,
    measure_tables,
    shares_of,
)
from autoprune.search.latency_steps import measured_steps
from autoprune.search.subject import Subject
from autoprune.search.trials import Record
from autoprune.search.widths import Space, Widths

NETWORKS = 10
"""Whole networks that correct the sum of the operators: the dense one, the smallest, and others between."""
PASSES = 15


def measure_networks(
    models: Iterable[nn.Module],
    input_size: tuple[int, int],
    runtime: str,
    device: torch.device,
    threads: int | None,
    passes: int = PASSES,
) -> list[Latency]:
    """Times the networks of detectors, one image at a time, in turns.

    Args:
        models: in eval mode, on ``device``.
        input_size: height and width of the image.
        runtime: ``torch``, ``onnxruntime`` or ``openvino``.
        device: where.
        threads: CPU threads of the runtimes other than torch.
        passes: timed passes of each.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
    """
    runs: dict[str, Run] = {}
    with ExitStack() as stack:
        for number, model in enumerate(models):
            if runtime == "torch":
                runs[str(number)] = in_torch(model.eval(), detector_inputs(input_size, device)[0])
                continue
            model = model.to("cpu").eval()
            inside = resized_size(input_size, resize_rule(model))
            (images,) = detector_inputs(input_size)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="autoprune-")))
            runs[str(number)] = in_file(model, images, inside, runtime, str(device), threads, folder)
        found = in_turns(runs, passes)
    return [stages[NETWORK] for stages in found.values()]


def fit_model(subject: Subject, space: Space, file: Path | None = None) -> LatencyModel:
    """The latency model of a dense detector in the run's runtime; measured, or read from ``file``.

    Args:
        subject: the dense detector.
        space: where widths lie; the networks that correct the model are taken from all over it.
        file: what was measured is kept there; it counts for the same device, runtime and operators alone.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
        RunError: the file is damaged or can't be written.
    """
    config, device = subject.config, subject.device
    runtime, threads = config.latency_runtime, config.threads
    where = label(runtime, device, threads, 1, subject.input_size)
    calls = tuple(find_calls(subject.model, detector_inputs(subject.input_size, device)[0]))
    key = sha256(repr((where, GRID, calls, space.lowest.tolist(), space.step.tolist())).encode()).hexdigest()
    if file is not None and (known := LatencyModel.load(file, key, subject.graph)) is not None:
        return known
    with TemporaryDirectory(prefix="autoprune-") as folder:
        tables = measure_tables(calls, runtime, device, threads, Path(folder))
    chosen = sample_widths(space, NETWORKS)
    models = (prune_to(subject.model, subject.graph, widths) for widths in chosen)
    measured = np.array(
        [t.median_ms for t in measure_networks(models, subject.input_size, runtime, device, threads)]
    )
    found = features(subject.graph, shares_of(subject.graph, calls), tables, np.stack(chosen))
    model = LatencyModel(
        subject.graph,
        calls,
        tables,
        correct(found, measured),
        left_out_errors(found, measured),
        float(measured[0]),
        where,
    )
    say(
        f"latency model of {where}: dense {model.dense_ms:.1f} ms; mean error "
        f"{model.mean_error:.1%} on {NETWORKS} networks, each left out in turn"
    )
    if file is not None:
        model.save(file, key)
    return model


def on_budget(model: LatencyModel, space: Space, text: str) -> tuple[Space, Budget]:
    """A space that knows its latency, and the budget that predictions have to meet in it.

    That is what the user asked for, less the model's margin: of what is predicted to meet it, four of five
    meet the user's budget when they are measured.

    Args:
        model: of the space's graph.
        space: to be searched.
        text: the budget as the user wrote it.

    Raises:
        BudgetError: it is no number, not below the dense detector's latency, or out of reach.
    """
    space = replace(space, latency=model)
    asked = parse_budget(text, "latency_ms", model.dense_ms)
    predicted_dense, least = (float(model(widths)) for widths in (space.dense, space.lowest))
    if least > asked.limit:
        space.check([asked])
    limit = min(max(asked.limit / (1 + model.margin), least), predicted_dense)
    return space, Budget("latency_ms", limit)


def prediction_error(model: LatencyModel, records: Iterable[Record]) -> str | None:
    """One line on how far predictions were from what trials measured; ``None`` where none did."""
    known = [record for record in records if record.widths and "latency_ms" in record.metrics]
    if not known:
        return None
    widths = np.array([[record.widths[name] for name in model.graph.cost.names] for record in known])
    measured = np.array([record.metrics["latency_ms"] for record in known])
    off = np.abs(model(widths) / measured - 1)
    return (
        f"latency: predictions were off by {off.mean():.1%} on average, {off.max():.1%} at most, of what "
        f"{len(known)} trials measured; trials and front hold the measured"
    )


def group_steps(subject: Subject) -> dict[str, int]:
    """The steps of `latency_steps.measured_steps` in the run's runtime and on its device."""
    config = subject.config
    calls = find_calls(subject.model, detector_inputs(subject.input_size, subject.device)[0])
    with TemporaryDirectory(prefix="autoprune-") as folder:
        return measured_steps(
            subject.graph, calls, config.latency_runtime, subject.device, config.threads, Path(folder)
        )


def sample_widths(space: Space, count: int, seed: int = 0) -> list[Widths]:
    """Widths [G] from all over the space: the dense ones, the lowest, and random ones at levels between."""
    random = np.random.default_rng(seed)
    found = [space.dense, space.lowest]
    for level in np.linspace(0.1, 0.9, max(count - 2, 0)):
        shares = np.clip(random.normal(level, 0.25, len(space.variables)), 0, 1)
        found.append(space.widths(shares))
    return found[:count]


def prune_to(model: nn.Module, graph: ChannelGraph, widths: Widths) -> nn.Module:
    """A dense detector with the first channels of each group; the time depends on no more."""
    keep: dict[str, Sequence[int]] = {}
    for name, width in zip(graph.cost.names, widths, strict=True):
        group = graph.groups[name]
        if width < group.width:
            keep[name] = sorted(group.units[: width // group.unit].ravel().tolist())
    return prune(model, graph, keep)
