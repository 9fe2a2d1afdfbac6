"""Fits the latency model of a detector in one setup, and says how well it predicted."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from torch import nn

from autoprune.cost.budget import Budget, parse_budget
from autoprune.detectors import detector_inputs
from autoprune.errors import RunError
from autoprune.files import cache_folder
from autoprune.graph import ChannelGraph
from autoprune.latency.machine import LatencySetup, measured_elsewhere, versions
from autoprune.latency.model import (
    LatencyModel,
    correct,
    features,
    fractions_of,
    left_out_errors,
)
from autoprune.latency.networks import measure_networks, prune_to, sample_widths
from autoprune.latency.operators import Call, find_calls
from autoprune.latency.tables import GRID, measure_tables
from autoprune.progress import say
from autoprune.space.space import Space

NETWORKS = 10
"""Whole networks that correct the sum of the operators: the dense one, the smallest, and others between."""
KEPT_ERROR = 0.15
"""A model with a larger mean error was measured on a busy machine; it is not kept for other runs."""


def fit_model(
    model: nn.Module, graph: ChannelGraph, space: Space, setup: LatencySetup, file: Path, begun: bool = False
) -> LatencyModel:
    """The latency model of a dense detector: the run's own, an earlier run's, or one measured now.

    What was measured is kept in the run and in the user's cache, where other runs of the same architecture
    and space find it, on the same device, with the same runtime, versions, threads and input size.

    Args:
        model: the dense detector, in eval mode on ``setup.device``.
        graph: its channel groups.
        space: the search space; the networks that correct the model are sampled from it.
        setup: where to measure, and at what size.
        file: the run's own copy, which a resumed run reads, so that its predictions do not change.
        begun: whether trials have been measured already.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
        RunError: the run was begun on another device; a file is damaged or can't be written.
    """
    label = setup.label
    calls = tuple(find_calls(model, detector_inputs(setup.input_size, setup.device)[0]))
    network = (label, GRID, calls, graph.cost.names, graph.cost.dense.tolist())
    key = sha256(repr((network, space.lowest.tolist(), space.step.tolist())).encode()).hexdigest()
    if (existing := LatencyModel.load(file, graph)) is not None:
        if existing.key == key:
            return existing
        if begun:
            raise measured_elsewhere(file.parent, existing.label, label)
    # other versions of torch and autoprune export and prune in other ways
    cached = cache_folder() / "latency" / f"{sha256((key + versions()).encode()).hexdigest()[:32]}.json"
    if (fitted := LatencyModel.load(cached, graph)) is not None:
        note = f"as an earlier run measured it; delete {cached} to measure it again"
    else:
        fitted = _measure(model, graph, space, setup, calls, key)
        note = f"mean error {fitted.mean_error:.1%} on {NETWORKS} networks, by leave-one-out cross-validation"
        if fitted.mean_error > KEPT_ERROR:
            note += "; that is large, as if the machine had other work: an idle one measures better"
        else:
            _cache(fitted, cached)
    say(f"latency model of {setup.label_of(model)}: dense {fitted.dense_ms:.1f} ms; {note}")
    fitted.save(file)
    return fitted


def _cache(model: LatencyModel, file: Path) -> None:
    """Keeps a model for other runs; where that fails, the run continues without."""
    try:
        model.save(file)
    except RunError as error:
        say(f"not kept for other runs: {error} (the variable AUTOPRUNE_CACHE names one)")


def _measure(
    model: nn.Module,
    graph: ChannelGraph,
    space: Space,
    setup: LatencySetup,
    calls: tuple[Call, ...],
    key: str,
) -> LatencyModel:
    """Times operators and whole networks."""
    with TemporaryDirectory(prefix="autoprune-") as folder:
        tables = measure_tables(calls, setup, Path(folder))
    widths = sample_widths(space, NETWORKS)
    latencies = measure_networks((prune_to(model, graph, each) for each in widths), setup)
    measured = np.array([latency.median_ms for latency in latencies])
    inputs = features(graph, fractions_of(graph, calls), tables, np.stack(widths))
    correction, errors = correct(inputs, measured), left_out_errors(inputs, measured)
    return LatencyModel(graph, calls, tables, correction, errors, float(measured[0]), setup.label, key)


def on_budget(
    model: LatencyModel, space: Space, text: str, dense_ms: float | None = None
) -> tuple[Space, Budget]:
    """A space that knows its latency, and the budget that predictions have to meet in it.

    The user's budget is divided by 1 plus the model's margin: of the policies that are predicted to meet the
    result, four of five meet the user's budget when they are measured.

    Args:
        model: of the space's graph.
        space: to be searched.
        text: the budget as the user wrote it.
        dense_ms: latency that fractions refer to, where the model is of a smaller input size, at which a
            budget out of reach is no error; ``None`` takes the model's.

    Raises:
        BudgetError: it is no number, not below the dense detector's latency, or out of reach.
    """
    space = replace(space, latency=model)
    requested = parse_budget(text, "latency_ms", model.dense_ms if dense_ms is None else dense_ms)
    predicted_dense, least = (float(model(widths)) for widths in (space.dense, space.lowest))
    if least > requested.limit:
        if dense_ms is not None:
            return space, requested
        space.check([requested])
    limit = min(max(requested.limit / (1 + model.margin), least), predicted_dense)
    return space, Budget("latency_ms", limit)


def prediction_error(
    model: LatencyModel, measurements: Iterable[tuple[Mapping[str, int], float]]
) -> str | None:
    """One line on how far predictions were from what trials measured; ``None`` where none did.

    Args:
        model: what predicted.
        measurements: widths {group: channels} of each measured policy, with its milliseconds.
    """
    pairs = list(measurements)
    if not pairs:
        return None
    names = model.graph.cost.names
    widths = np.array([[channels[name] for name in names] for channels, _ in pairs])
    measured = np.array([ms for _, ms in pairs])
    errors = np.abs(model(widths) / measured - 1)
    return (
        f"latency: predictions were off by {errors.mean():.1%} on average, {errors.max():.1%} at most, of "
        f"what {len(pairs)} trials measured; trials and front hold the measured latencies"
    )
