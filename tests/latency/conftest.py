"""Small detectors with their graphs, spaces and calls."""

from typing import Any, NamedTuple

import numpy as np
import pytest
from torch import nn

from autoprune.config import ModelSpec
from autoprune.detectors import build, detector_inputs
from autoprune.graph import ChannelGraph, analyze
from autoprune.latency.model import LatencyModel
from autoprune.latency.operators import Call, Operator, find_calls
from autoprune.latency.tables import GRID
from autoprune.space.derive import derive_space
from autoprune.space.resolve import resolve
from autoprune.space.space import Space

SIZE = (64, 64)


class Network(NamedTuple):
    model: nn.Module
    graph: ChannelGraph
    space: Space
    calls: tuple[Call, ...]


def seconds_of(operator: Operator) -> float:
    """A made-up time of an operator: what it multiplies."""
    return operator.inputs * operator.outputs / operator.groups * 1e-9


@pytest.fixture(scope="session")
def fake_seconds() -> Any:
    return seconds_of


@pytest.fixture(scope="session", params=["retinanet_resnet18_fpn", "ssdlite320_mobilenet_v3_large"])
def network(request: pytest.FixtureRequest) -> Network:
    """A detector of 64x64; the second has depthwise convolutions and squeezes."""
    small = {"min_size": 64, "max_size": 64, "fpn_channels": 32}
    arguments = small if request.param.startswith("retina") else {}
    spec = ModelSpec(name=request.param, arguments=arguments, num_classes=3)
    model = build(spec).eval()
    graph = analyze(model, detector_inputs(SIZE))
    importance = {name: np.arange(group.width, dtype=float) for name, group in graph.prunable.items()}
    space = resolve(derive_space(graph, importance, spec, SIZE), graph, importance)
    return Network(model, graph, space, tuple(find_calls(model, detector_inputs(SIZE)[0])))


@pytest.fixture
def latency(network: Network) -> LatencyModel:
    """A model whose operators cost what they multiply, scaled to 100 ms for the dense network."""
    _, graph, space, calls = network
    worth = np.array([seconds_of(call.operator) * 1e3 for call in calls])
    tables = worth[:, None, None] * np.outer(GRID, GRID)
    errors = (-0.02, 0.0, 0.01, 0.04, 0.05)
    unscaled = LatencyModel(graph, calls, tables, (1.0, 0.0, 0.0, 0.0), errors, 1.0, "here")
    dense = float(unscaled(space.dense))
    return LatencyModel(graph, calls, tables, (100 / dense, 0.0, 0.0, 0.0), errors, 100.0, "here", "key")
