"""The latency of widths: the operators are looked up at the widths that pruning gives them."""

import json

import numpy as np
import pytest
import torch

from autoprune.config import ModelSpec
from autoprune.cost.budget import figures
from autoprune.detectors import build, detector_inputs
from autoprune.errors import BudgetError, RunError
from autoprune.graph import analyze, prune
from autoprune.latency import model as module
from autoprune.latency.fit import on_budget, sample_widths
from autoprune.latency.model import (
    GRID,
    LatencyModel,
    correct,
    features,
    fractions_of,
    left_out_errors,
    measure_tables,
)
from autoprune.latency.operators import find_calls
from autoprune.space.derive import derive_space
from autoprune.space.resolve import resolve

SIZE = (64, 64)


@pytest.fixture(scope="module", params=["retinanet_resnet18_fpn", "ssdlite320_mobilenet_v3_large"])
def network(request):
    """A detector with its graph and its calls; the second has depthwise convolutions and squeezes."""
    small = {"min_size": 64, "max_size": 64, "fpn_channels": 32}
    arguments = small if request.param.startswith("retina") else {}
    spec = ModelSpec(name=request.param, arguments=arguments, num_classes=3)
    model = build(spec).eval()
    graph = analyze(model, detector_inputs(SIZE))
    importance = {name: np.arange(group.width, dtype=float) for name, group in graph.prunable.items()}
    space = resolve(derive_space(graph, importance, spec, SIZE), graph, importance)
    return model, graph, space, tuple(find_calls(model, detector_inputs(SIZE)[0]))


def test_shares_are_the_channels_that_pruning_leaves(network):
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
    found = features(graph, fractions, tables, widths)
    for row, width in zip(found, widths, strict=True):
        kept = np.append(width / graph.cost.dense, 1.0)
        assert row[0] == pytest.approx((worth * (fractions[0] @ kept) * (fractions[1] @ kept)).sum())
        assert row[1] == pytest.approx(float(graph.cost.activations(width)) / 1e6)
        assert row[3] == pytest.approx(float(graph.cost.flops(width)) / 1e9)
    assert (found[:, 2] == 1).all()


def test_every_operator_is_timed_once_over_its_widths(network, tmp_path, monkeypatch):
    *_, calls = network
    timed = []

    def fake(operator, *_):
        timed.append(operator)
        return lambda: operator

    def seconds(passes):
        return {name: _fake_time(run()) for name, run in passes.items()}

    monkeypatch.setattr(module, "one_pass", fake)
    tables = measure_tables(calls, "torch", torch.device("cpu"), 1, tmp_path, seconds)
    assert len(timed) == len(set(timed))
    assert {call.operator for call in calls} <= set(timed)
    for call, table in zip(calls, tables, strict=True):
        assert table[-1, -1] == pytest.approx(1e3 * _fake_time(call.operator))
        half = GRID.index(0.5)
        if call.operator.groups == 1 and call.operator.inputs % 16 == call.operator.outputs % 16 == 0:
            assert table[half, half] == pytest.approx(table[-1, -1] / 4)
        assert (np.diff(table, axis=0) >= 0).all()
        assert (np.diff(table, axis=1) >= 0).all()


def _fake_time(operator):
    return operator.inputs * operator.outputs / operator.groups * 1e-9


def test_the_correction_is_found_again_and_never_negative():
    random = np.random.default_rng(0)
    found = np.column_stack([random.uniform(10, 100, 10), random.uniform(1, 30, 10), np.ones(10)])
    measured = found @ np.array([1.2, 0.3, 4.0])
    assert correct(found, measured) == pytest.approx((1.2, 0.3, 4.0))
    assert np.abs(left_out_errors(found, measured)).max() < 1e-6
    assert min(correct(found, found @ np.array([1.2, -0.3, 0.0]))) >= 0
    measured[3] *= 1.5  # one disturbed network: its own error shows it
    assert left_out_errors(found, measured)[3] > 0.3


@pytest.fixture
def latency(network):
    """A model whose operators cost what they multiply."""
    _, graph, space, calls = network
    worth = np.array([_fake_time(call.operator) * 1e3 for call in calls])
    tables = worth[:, None, None] * np.outer(GRID, GRID)
    errors = (-0.02, 0.0, 0.01, 0.04, 0.05)
    unscaled = LatencyModel(graph, calls, tables, (1.0, 0.0, 0.0, 0.0), errors, 1.0, "here")
    dense = float(unscaled(space.dense))
    return LatencyModel(graph, calls, tables, (100 / dense, 0.0, 0.0, 0.0), errors, 100.0, "here", "key")


def test_candidates_are_fitted_to_the_budget_less_the_margin(network, latency):
    space, budget = on_budget(latency, network[2], "60%")
    margin = np.quantile(latency.errors, 0.8)
    assert (budget.metric, budget.limit) == ("latency_ms", pytest.approx(60 / (1 + margin)))
    for fractions in np.random.default_rng(0).random((5, len(space.variables))):
        widths = space.project_to_budget(fractions, [budget])
        assert 0.95 * budget.limit < float(latency(widths)) <= budget.limit
    assert float(network[2].budget_usage(space.dense, [budget])) == 0  # without a model it bounds nothing


def test_a_budget_on_latency_out_of_reach_says_the_least(network, latency):
    least = float(latency(network[2].lowest))
    with pytest.raises(
        BudgetError, match=rf"budget_latency_ms: .* smallest in this search space is {figures(least)}"
    ):
        on_budget(latency, network[2], f"{least / 2}")
    with pytest.raises(BudgetError, match="prunes nothing"):
        on_budget(latency, network[2], "101")


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
