"""Multiples are read off measured times: stairs give their own width, an even slope the finest."""

import math

import pytest
import torch

from autoprune.config import ModelSpec
from autoprune.detectors import build, detector_inputs
from autoprune.graph import analyze
from autoprune.latency import multiples as module
from autoprune.latency.machine import LatencySetup
from autoprune.latency.multiples import measure_multiples

SIZE = (64, 64)
SETUP = LatencySetup("torch", torch.device("cpu"), 1, SIZE)
SPEC = ModelSpec(
    name="retinanet_resnet18_fpn",
    arguments={"min_size": 64, "max_size": 64, "fpn_channels": 32},
    num_classes=3,
)


@pytest.fixture(scope="module")
def network():
    model = build(SPEC).eval()
    return model, analyze(model, detector_inputs(SIZE))


@pytest.mark.parametrize("stair", [8, 16, 32])
def test_stairs_are_found(network, monkeypatch, stair):
    model, graph = network
    monkeypatch.setattr(module, "one_pass", lambda operator, *_: lambda: operator)

    def seconds(passes):
        return {name: math.ceil(run().outputs / stair) * 1e-3 for name, run in passes.items()}

    multiples = measure_multiples(model, graph, SETUP, seconds)
    assert len(multiples) > 8
    assert set(multiples.values()) == {stair}
    assert all(graph.groups[name].width >= 64 for name in multiples)


def test_the_operator_with_the_most_multiply_adds_that_writes_the_group_is_timed(network, monkeypatch):
    model, graph = network
    timed = []
    monkeypatch.setattr(module, "one_pass", lambda operator, *_: timed.append(operator) or (lambda: operator))
    multiples = measure_multiples(model, graph, SETUP, lambda passes: dict.fromkeys(passes, 1e-3))
    assert set(multiples.values()) == {32}  # where no channel costs time, the coarsest wastes nothing
    stage = [operator for operator in timed if operator.kernel == (3, 3) and operator.inputs == 512]
    assert [operator.outputs for operator in stage[:5]] == [256, 264, 272, 280, 288]
