"""Channel groups: members and roles, widths and costs by name, and positions that remain."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoprune.errors import PolicyError
from autoprune.graph import analyze
from autoprune.graph.groups import find_group, kept_positions

X = torch.rand(2, 3, 8, 8)


@pytest.fixture(scope="module")
def graph():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.PReLU(8), nn.Conv2d(8, 6, 1, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 10, 2), nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1),
    )  # fmt: skip
    return analyze(model, (X,))


def test_groups_members_and_roles(residual):
    graph = analyze(residual(), (X,))
    assert list(graph.groups) == ["stem", "inner", "head"]
    assert [(g.width, g.unit, g.prunable) for g in graph.groups.values()] == [
        (8, 1, True),
        (6, 1, True),
        (5, 1, False),
    ]
    stem = graph.groups["stem"]
    roles = {(name, axis): role for (name, axis, _), role in zip(stem.members, stem.roles, strict=True)}
    assert roles == {
        ("stem.weight", 0): "producer", ("stem.bias", 0): "other",
        ("norm.weight", 0): "norm", ("norm.bias", 0): "norm",
        ("norm.running_mean", 0): "norm", ("norm.running_var", 0): "norm",
        ("inner.weight", 1): "consumer",
        ("outer.weight", 0): "producer", ("outer.bias", 0): "other",
        ("head.weight", 1): "consumer",
    }  # fmt: skip
    flattened = next(index for name, _, index in stem.members if name == "head.weight")
    assert flattened.tolist() == np.repeat(np.arange(8), 64).tolist()


@pytest.mark.parametrize(
    "widths", [{"5": 0}, {"5": 11}, {"5": 2.5}, {"5": True}, {"5": "3"}, {"0": 3}, {"7": 2}, {"x": 2}]
)
def test_widths_that_do_not_fit_are_refused(graph, widths):
    with pytest.raises(PolicyError, match=f"`{next(iter(widths))}`"):
        graph.gflops(widths)


def test_units_cover_each_channel_once(graph):
    for group in graph.groups.values():
        assert sorted(group.units.ravel().tolist()) == list(range(group.width))
        assert group.units.shape == (group.width // group.unit, group.unit)
        for _, _, index in group.members:
            assert set(np.unique(index)) <= set(range(-1, group.width))


@given(
    st.lists(st.integers(-1, 9), min_size=1, max_size=40),
    st.none() | st.sets(st.integers(0, 9), min_size=1),
)
def test_positions_remain_where_their_channel_is_kept_or_of_another_group(index, kept):
    keep = {"other": (0,)} if kept is None else {"group": sorted(kept)}
    expected = [i for i, channel in enumerate(index) if kept is None or channel < 0 or channel in kept]
    assert kept_positions("group", np.array(index), keep).tolist() == expected
    assert kept_positions(None, np.array(index), keep).tolist() == list(range(len(index)))


def test_costs_at_all_dense_widths_are_the_dense_costs(graph):
    widths = {name: group.width for name, group in graph.groups.items()}
    assert graph.gflops(widths) == graph.gflops() == graph.gflops({})
    assert graph.mparams(widths) == graph.mparams()
    assert graph.vector(None).tolist() == [group.width for group in graph.prunable.values()]


def test_a_width_that_a_policy_keeps_is_set_in_its_place(graph):
    name, group = list(graph.prunable.items())[-1]
    vector = graph.vector({name: np.int64(group.unit)})
    assert vector.tolist() == [*graph.vector(None)[:-1], group.unit]
    assert graph.gflops({name: group.unit}) < graph.gflops()


def test_an_unknown_group_says_where_names_are_listed(graph):
    with pytest.raises(PolicyError, match=r"^no channel group is named `x`; `autoprune inspect` lists them$"):
        find_group(graph.groups, "x")
