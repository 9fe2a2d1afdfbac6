"""Latency in the search: a network's measured time in the run's runtime, and the model that predicts it."""

import time
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
from autoprune.data.images import resized_size
from autoprune.detectors import detector_inputs, resize_rule
from autoprune.errors import RunError
from autoprune.files import cache_folder
from autoprune.graph import ChannelGraph, prune
from autoprune.latency.machine import label, versions
from autoprune.latency.model import (
    GRID,
    LatencyModel,
    correct,
    features,
    fractions_of,
    left_out_errors,
    measure_tables,
)
from autoprune.latency.operators import Call, find_calls
from autoprune.latency.runners import NETWORK, Clock, Run, in_file, in_torch
from autoprune.latency.steps import measured_steps
from autoprune.latency.timing import Latency, interleaved
from autoprune.progress import say
from autoprune.space.space import Space, Widths
from autoprune.study.trials import Record
from autoprune.task.pruning_task import PruningTask

NETWORKS = 10
"""Whole networks that correct the sum of the operators: the dense one, the smallest, and others between."""
PASSES = 15
KEPT_ERROR = 0.15
"""A model with a larger mean error was measured on a machine with other work, and no other run gets it."""


def measure_networks(
    models: Iterable[nn.Module],
    input_size: tuple[int, int],
    runtime: str,
    device: torch.device,
    threads: int | None,
    passes: int = PASSES,
    clock: Clock = time.perf_counter,
) -> list[Latency]:
    """Times the networks of detectors, one image at a time, in turns.

    Args:
        models: in eval mode, on ``device``.
        input_size: height and width of the image.
        runtime: ``torch``, ``onnxruntime`` or ``openvino``.
        device: where.
        threads: CPU threads of the runtimes other than torch; ``None`` for torch's number.
        passes: timed passes of each.
        clock: seconds, rising; benchmarks on a machine with other work take the process' own.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
    """
    runs: dict[str, Run] = {}
    with ExitStack() as stack:
        for number, model in enumerate(models):
            if runtime == "torch":
                runs[str(number)] = in_torch(model.eval(), detector_inputs(input_size, device)[0], clock)
                continue
            model = model.to("cpu").eval()
            inside = resized_size(input_size, resize_rule(model))
            (images,) = detector_inputs(input_size)
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="autoprune-")))
            runs[str(number)] = in_file(model, images, inside, runtime, str(device), threads, folder, clock)
            model.to(device)
        found = interleaved(runs, passes)
    return [stages[NETWORK] for stages in found.values()]


def fit_model(task: PruningTask, space: Space, file: Path, begun: bool = False) -> LatencyModel:
    """The latency model of a dense detector in the run's runtime: the run's, an earlier run's, or measured.

    What was measured is kept in the run and in the user's cache, where other runs of the same architecture
    and space find it, on the same device, with the same runtime, versions, threads and input size.

    Args:
        task: the dense detector.
        space: where widths lie; the networks that correct the model are taken from all over it.
        file: the run's own copy, which keeps a resumed run as it was.
        begun: whether trials have been measured already.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
        RunError: the run was begun on another device; a file is damaged or can't be written.
    """
    config, graph = task.config, task.graph
    runtime, threads = config.latency_runtime, config.threads
    where = label(runtime, task.device, threads, 1, task.input_size)
    calls = tuple(find_calls(task.model, detector_inputs(task.input_size, task.device)[0]))
    network = (where, GRID, calls, graph.cost.names, graph.cost.dense.tolist())
    key = sha256(repr((network, space.lowest.tolist(), space.step.tolist())).encode()).hexdigest()
    if (own := LatencyModel.load(file, graph)) is not None:
        if own.key == key:
            return own
        if begun:
            raise RunError(
                f"{file.parent} has its latencies from {own.label}, and this is {where}; go on there, or "
                "choose another --out"
            )
    # other versions of torch and autoprune export and prune in other ways
    cached = cache_folder() / "latency" / f"{sha256((key + versions()).encode()).hexdigest()[:32]}.json"
    if (model := LatencyModel.load(cached, graph)) is not None:
        said = f"as an earlier run measured it; delete {cached} to measure it anew"
    else:
        model = _measure(task, space, calls, where, key)
        said = f"mean error {model.mean_error:.1%} on {NETWORKS} networks, each left out in turn"
        if model.mean_error > KEPT_ERROR:
            said += "; that is much, as if the machine had other work: an idle one measures better"
        else:
            _share(model, cached)
    say(f"latency model of {where}: dense {model.dense_ms:.1f} ms; {said}")
    model.save(file)
    return model


def _share(model: LatencyModel, file: Path) -> None:
    """Keeps a model for other runs; a run does not need that, and goes on where it fails."""
    try:
        model.save(file)
    except RunError as error:
        say(f"not kept for other runs: {error} (the variable AUTOPRUNE_CACHE names one)")


def _measure(task: PruningTask, space: Space, calls: tuple[Call, ...], where: str, key: str) -> LatencyModel:
    """Times operators and whole networks."""
    config, graph, device = task.config, task.graph, task.device
    runtime, threads = config.latency_runtime, config.threads
    with TemporaryDirectory(prefix="autoprune-") as folder:
        tables = measure_tables(calls, runtime, device, threads, Path(folder))
    chosen = sample_widths(space, NETWORKS)
    models = (prune_to(task.model, graph, widths) for widths in chosen)
    times = measure_networks(models, task.input_size, runtime, device, threads)
    measured = np.array([found.median_ms for found in times])
    found = features(graph, fractions_of(graph, calls), tables, np.stack(chosen))
    correction, errors = correct(found, measured), left_out_errors(found, measured)
    return LatencyModel(graph, calls, tables, correction, errors, float(measured[0]), where, key)


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


def group_steps(task: PruningTask) -> dict[str, int]:
    """The steps of `latency_steps.measured_steps` in the run's runtime and on its device."""
    config = task.config
    calls = find_calls(task.model, detector_inputs(task.input_size, task.device)[0])
    with TemporaryDirectory(prefix="autoprune-") as folder:
        return measured_steps(
            task.graph, calls, config.latency_runtime, task.device, config.threads, Path(folder)
        )


def sample_widths(space: Space, count: int, seed: int = 0) -> list[Widths]:
    """Widths [G] from all over the space: the dense ones, the lowest, and random ones at levels between."""
    random = np.random.default_rng(seed)
    found = [space.dense, space.lowest]
    for level in np.linspace(0.1, 0.9, max(count - 2, 0)):
        fractions = np.clip(random.normal(level, 0.25, len(space.variables)), 0, 1)
        found.append(space.widths(fractions))
    return found[:count]


def prune_to(model: nn.Module, graph: ChannelGraph, widths: Widths) -> nn.Module:
    """A dense detector with the first channels of each group; the time depends on no more."""
    keep: dict[str, Sequence[int]] = {}
    for name, width in zip(graph.cost.names, widths, strict=True):
        group = graph.groups[name]
        if width < group.width:
            keep[name] = sorted(group.units[: width // group.unit].ravel().tolist())
    return prune(model, graph, keep)
