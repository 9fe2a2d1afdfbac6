"""Policies tried on one copy, each undone."""

import pytest
import torch
from torch import nn

from autoprune.errors import PolicyError
from autoprune.graph import analyze, prune
from autoprune.graph.workbench import Workbench

X = torch.rand(2, 3, 6)


class Listing(nn.Module):
    """Keeps its weights in a list, too, and counts its calls."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave = nn.Linear(6, 8), nn.Linear(8, 2)
        self.attention = nn.MultiheadAttention(6, 3, batch_first=True)
        self.weights, self.calls = [self.enter.weight, self.leave.weight], {"all": 0}

    def forward(self, x):
        self.calls["all"] += 1
        x = x + self.attention(x, x, x, need_weights=False)[0]
        hidden = torch.relu(x @ self.weights[0].T + self.enter.bias)
        return hidden @ self.weights[1].T + self.leave.bias


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Listing().eval()


def test_each_policy_gives_what_prune_gives_and_leaves_nothing_behind(model):
    graph = analyze(model, (X,))
    bench = Workbench(model)
    heads = graph.groups["attention.in_proj"]
    for keep in ({"enter": [1, 2, 5]}, {heads.name: heads.units[:1].ravel().tolist()}, {"enter": [7]}, {}):
        with bench.pruned(graph, keep) as pruned:
            expected = prune(model, graph, keep)
            assert [x.shape for x in pruned.parameters()] == [x.shape for x in expected.parameters()]
            torch.testing.assert_close(pruned(X), expected(X))
            assert pruned.calls["all"] == expected.calls["all"]
            assert [type(module) for module in pruned.modules()] == [type(m) for m in expected.modules()]
    with bench.pruned(graph, {}) as same:
        torch.testing.assert_close(same(X), model(X))


class StopError(Exception):
    pass


def broken(bench, graph):
    with bench.pruned(graph, {"enter": [0]}) as pruned:
        pruned.extra = 1
        raise StopError


def test_a_policy_that_fails_is_undone(model):
    graph, bench = analyze(model, (X,)), Workbench(model)
    with pytest.raises(PolicyError), bench.pruned(graph, {"enter": [99]}):
        pass
    with pytest.raises(StopError):
        broken(bench, graph)
    with bench.pruned(graph, {}) as same:
        assert not hasattr(same, "extra")
        torch.testing.assert_close(same(X), model(X))


def test_names_are_those_of_the_modules(model):
    assert sorted(Workbench(model).names().values()) == sorted(name for name, _ in model.named_modules())
