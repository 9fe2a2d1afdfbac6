"""Networks are measured interleaved in any runtime, and pruned to any widths of a space."""

from dataclasses import asdict

import numpy as np
import pytest
import torch

from autoprune.config import ModelSpec
from autoprune.detectors import Resize, build, detector_inputs, resized
from autoprune.errors import ModelError
from autoprune.latency import networks as module
from autoprune.latency.machine import LatencySetup
from autoprune.latency.networks import latency_row, measure_networks, prune_to, sample_widths
from autoprune.latency.operators import find_calls
from autoprune.latency.timing import Latency
from autoprune.runtimes.sessions import RUNTIMES

SIZE = (64, 64)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def detector():
    small = {"min_size": 64, "max_size": 64, "fpn_channels": 32}
    return build(ModelSpec(name="retinanet_resnet18_fpn", arguments=small, num_classes=3))


def test_networks_have_the_threads_of_the_setup(detector):
    """A driver of a Ray cluster has more than its workers; what it measures is a limit for theirs."""
    own, seen = torch.get_num_threads(), set()
    hook = detector.register_forward_pre_hook(lambda *_: seen.add(torch.get_num_threads()))
    measure_networks([detector], LatencySetup("torch", CPU, own + 1, SIZE), 1)
    hook.remove()
    assert seen == {own + 1}
    assert torch.get_num_threads() == own


@pytest.mark.parametrize("runtime", list(RUNTIMES))
def test_each_network_is_timed_by_the_given_clock(detector, runtime):
    for library in RUNTIMES[runtime].libraries:
        pytest.importorskip(library, reason=f"{library} is not installed")
    readings = iter(range(10_000))
    setup = LatencySetup(runtime, CPU, 1, SIZE)
    latencies = measure_networks([detector, detector], setup, 2, clock=lambda: float(next(readings)))
    assert [latency.repeats for latency in latencies] == [2, 2]
    assert len({latency.median_ms for latency in latencies}) == 1, "each pass reads the clock as often"
    assert latencies[0].median_ms >= 1000
    assert not detector.training


def test_a_network_that_cannot_be_exported_is_left_where_it_was(detector, monkeypatch):
    def fail(*_):
        raise ModelError("can't be exported")

    moves = []
    monkeypatch.setattr(module, "in_file", fail)
    monkeypatch.setattr(detector, "to", lambda device: moves.append(str(device)) or detector)
    with pytest.raises(ModelError, match="can't be exported"):
        measure_networks([detector], LatencySetup("onnxruntime", torch.device("cuda"), 1, SIZE))
    assert moves == ["cpu", "cuda"]


def test_only_the_network_counts(detector, monkeypatch):
    passes = iter([{"preprocessing": 9.0, "network": 0.25, "postprocessing": 9.0}] * 100)
    monkeypatch.setattr(module, "in_torch", lambda *_: lambda: next(passes))
    (latency,) = measure_networks([detector], LatencySetup("torch", CPU, None, SIZE), 3)
    assert (latency.median_ms, latency.repeats) == (250.0, 3)


def test_a_recorded_latency_carries_the_size_that_each_network_sees(detector):
    setup = LatencySetup("torch", CPU, 1, SIZE)
    pruned, dense = Latency(2.0, 1.0, 3.0, 5), Latency(8.0, 7.0, 9.0, 5)
    smaller = resized(detector, Resize(32, 32))
    same = latency_row(setup, detector, pruned, (detector, dense))
    assert same == {"label": setup.label, **asdict(pruned), "dense_ms": 8.0}
    other = latency_row(setup, smaller, pruned, (detector, dense))
    assert "which the detector itself makes 32x32" in other["label"]
    assert (other["dense_ms"], other["dense_network_size"]) == (8.0, [64, 64])
    assert "dense_ms" not in latency_row(setup, smaller, pruned)


def test_samples_reach_over_the_whole_space_and_repeat(network):
    space = network.space
    samples = sample_widths(space, 6)
    assert samples[0].tolist() == space.dense.tolist()
    assert samples[1].tolist() == space.lowest.tolist()
    costs = [float(space.cost("gflops", widths)) for widths in samples[2:]]
    assert costs == sorted(costs, reverse=True)
    for widths in samples:
        assert ((space.lowest <= widths) & (widths <= space.dense)).all()
    assert all(np.array_equal(*pair) for pair in zip(samples, sample_widths(space, 6), strict=True))
    assert len(sample_widths(space, 1)) == 1


def test_a_pruned_network_has_the_widths_asked_for(network):
    model, graph, space, calls = network
    pruned = prune_to(model, graph, space.lowest)
    narrow = find_calls(pruned, detector_inputs(SIZE)[0])
    widths = space.as_dict(space.lowest)
    checked = 0
    for call, dense in zip(narrow, calls, strict=True):
        group = graph.groups.get(call.weight.removesuffix(".weight"))
        if group is not None and group.prunable and dense.operator.groups == 1:
            assert call.operator.outputs == widths[group.name]
            checked += 1
    assert checked > 5
    assert [call.operator for call in find_calls(model, detector_inputs(SIZE)[0])] == [
        call.operator for call in calls
    ], "the dense detector is as it was"
