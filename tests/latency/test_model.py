"""The latency of widths: the operators are looked up at the widths that pruning gives them."""

import json

import numpy as np
import pytest
import torch

from autoprune.detectors import detector_inputs
from autoprune.errors import RunError
from autoprune.graph import prune
from autoprune.latency.machine import LatencySetup
from autoprune.latency.model import (
    LatencyModel,
    correct,
    features,
    fractions_of,
    left_out_errors,
)
from autoprune.latency.networks import sample_widths
from autoprune.latency.operators import find_calls
from autoprune.latency.tables import GRID

SIZE = (64, 64)
SETUP = LatencySetup("torch", torch.device("cpu"), 1, SIZE)


def test_fractions_are_the_channels_that_pruning_leaves(network):
    model, graph, space, calls = network
    fractions = fractions_of(graph, calls)
    for widths in sample_widths(space, 4):
        pruned = prune(model, graph, space.keep(widths))
        narrow = find_calls(pruned, detector_inputs(SIZE)[0])
        kept = np.append(widths / graph.cost.dense, 1.0)
        inputs, outputs = (rows @ kept for rows in fractions)
        assert [call.weight for call in narrow] == [call.weight for call in calls]
        for place, (call, dense) in enumerate(zip(narrow, calls, strict=True)):
            assert inputs[place] * dense.operator.inputs == pytest.approx(call.operator.inputs)
            assert outputs[place] * dense.operator.outputs == pytest.approx(call.operator.outputs)


def test_between_the_measured_widths_times_are_interpolated(network):
    _, graph, space, calls = network
    worth = np.random.default_rng(0).random(len(calls))
    tables = worth[:, None, None] * np.outer(GRID, GRID)  # linear in both: interpolation is exact
    fractions = fractions_of(graph, calls)
    widths = np.stack(sample_widths(space, 5))
    inputs = features(graph, fractions, tables, widths)
    for row, width in zip(inputs, widths, strict=True):
        kept = np.append(width / graph.cost.dense, 1.0)
        assert row[0] == pytest.approx((worth * (fractions[0] @ kept) * (fractions[1] @ kept)).sum())
        assert row[1] == pytest.approx(float(graph.cost.activations(width)) / 1e6)
        assert row[3] == pytest.approx(float(graph.cost.flops(width)) / 1e9)
    assert (inputs[:, 2] == 1).all()


def test_the_correction_recovers_the_coefficients_and_is_never_negative():
    random = np.random.default_rng(0)
    inputs = np.column_stack([random.uniform(10, 100, 10), random.uniform(1, 30, 10), np.ones(10)])
    measured = inputs @ np.array([1.2, 0.3, 4.0])
    assert correct(inputs, measured) == pytest.approx((1.2, 0.3, 4.0))
    assert np.abs(left_out_errors(inputs, measured)).max() < 1e-6
    assert min(correct(inputs, inputs @ np.array([1.2, -0.3, 0.0]))) >= 0
    measured[3] *= 1.5  # one disturbed network shows in its own error
    assert left_out_errors(inputs, measured)[3] > 0.3


def test_what_was_measured_is_read_back(network, latency, tmp_path):
    _, graph, space, _ = network
    file = tmp_path / "latency_model.json"
    assert LatencyModel.load(file, graph) is None
    latency.save(file)
    again = LatencyModel.load(file, graph)
    widths = np.stack(sample_widths(space, 5))
    assert again(widths) == pytest.approx(latency(widths), rel=1e-4)
    assert (again.errors, again.dense_ms, again.calls) == (latency.errors, 100.0, latency.calls)
    assert (again.label, again.key) == ("here", "key")
    file.write_text(json.dumps({"key": "key"}))
    with pytest.raises(RunError, match="is damaged; delete it"):
        LatencyModel.load(file, graph)


def test_layers_without_inputs_or_outputs_take_no_time(network):
    model, graph, _, calls = network
    name = graph.emptiable[0]
    widths = graph.vector({name: 0})
    pruned = prune(model, graph, {name: []})
    ran = {call.weight for call in find_calls(pruned, detector_inputs(SIZE)[0])}
    assert ran < {call.weight for call in calls}
    (row,) = features(
        graph, fractions_of(graph, calls), np.ones((len(calls), len(GRID), len(GRID))), widths[None]
    )
    assert row[0] == sum(call.weight in ran for call in calls)
