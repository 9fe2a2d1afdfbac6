"""Steps are read off measured times: stairs give their own width, an even slope the finest."""

import math

import numpy as np
import pytest
import torch
from autoprune.latency.steps import measured_steps

from autoprune.config import ModelSpec
from autoprune.detectors import build, detector_inputs
from autoprune.errors import ConfigError
from autoprune.graph import analyze
from autoprune.latency import steps as module
from autoprune.latency.operators import find_calls
from autoprune.space.derive import derive_space, with_multiples
from autoprune.space.file import SpaceFile
from autoprune.space.render import render_space
from autoprune.space.resolve import resolve

SIZE = (64, 64)
SPEC = ModelSpec(
    name="retinanet_resnet18_fpn",
    arguments={"min_size": 64, "max_size": 64, "fpn_channels": 32},
    num_classes=3,
)


@pytest.fixture(scope="module")
def network():
    model = build(SPEC).eval()
    graph = analyze(model, detector_inputs(SIZE))
    return graph, find_calls(model, detector_inputs(SIZE)[0])


@pytest.mark.parametrize("stair", [8, 16, 32])
def test_stairs_are_found(network, tmp_path, monkeypatch, stair):
    graph, calls = network
    monkeypatch.setattr(module, "one_pass", lambda operator, *_: lambda: operator)
    found = measured_steps(
        graph,
        calls,
        "torch",
        torch.device("cpu"),
        1,
        tmp_path,
        lambda passes: {name: math.ceil(run().outputs / stair) * 1e-3 for name, run in passes.items()},
    )
    assert len(found) > 8
    assert set(found.values()) == {stair}
    assert all(graph.groups[name].width >= 64 for name in found)


def test_a_groups_own_multiple_counts_and_is_written(network):
    graph, _ = network
    scores = {name: np.arange(group.width, dtype=float) for name, group in graph.prunable.items()}
    file = derive_space(graph, scores, SPEC, SIZE)
    name = "backbone.body.layer3.0.conv1"
    stepped = with_multiples(file, {name: 32, "backbone.body.layer4.0.conv1": 8})
    assert [rule.match for rule in stepped.groups if rule.round_to is not None] == [name]
    space = resolve(stepped, graph)
    place = space.names.index(name)
    assert space.step[place] == 32
    assert space.lowest[place] % 32 == 0
    others = np.delete(np.arange(len(space.names)), place)
    assert (space.step[others] == resolve(file, graph).step[others]).all()
    assert f'match: "{name}", max_ratio: ' in render_space(stepped, graph, scores)
    assert "round_to: 32}" in render_space(stepped, graph, scores)


def test_a_frozen_group_has_no_multiple(tmp_path):
    path = tmp_path / "space.yaml"
    path.write_text(
        "model: m\ninput_size: [64, 64]\ngroups:\n  - {match: a, frozen: true, round_to: 8}\n",
        encoding="utf-8",
    )
    with pytest.raises(ConfigError, match="omit tie, min_width and round_to"):
        SpaceFile.load(path)
