"""Numbers that a model's code makes of widths, by whatever formula, attribute or op: pruned equals masked."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.graph import analyze, mask, numbers, prune


class Numbers(nn.Module):
    """Three layers; ``make`` is code between the first two, which may read their attributes."""

    def __init__(self, make, widths=(12, 10)):
        super().__init__()
        first, second = widths
        self.a, self.b, self.c = nn.Conv2d(3, first, 1), nn.Conv2d(first, second, 1), nn.Conv2d(second, 2, 1)
        self.norm, self.make = nn.BatchNorm2d(first), make

    def forward(self, x):
        """The output of the last layer."""
        return self.c(self.b(self.make(self, self.norm(self.a(x)).relu())).relu())


def agrees(model):
    """The prunable groups, once pruned models are seen to equal masked ones at several widths."""
    model, inputs = model.double().eval(), (torch.rand(2, 3, 4, 4).double(),)
    graph = analyze(model, inputs)
    for kept in (1, 3, 5, 9):
        keep = {name: list(range(kept)) for name, group in graph.prunable.items() if kept < group.width}
        expected = mask(model, graph, keep)(*inputs)
        torch.testing.assert_close(prune(model, graph, keep)(*inputs), expected, rtol=1e-9, atol=1e-9)
    return list(graph.prunable)


@pytest.mark.parametrize(
    "make",
    [
        lambda m, x: x / (2 * m.a.out_channels),
        lambda m, x: x / (m.a.out_channels - 1),
        lambda m, x: x * m.a.out_channels**0.25,
        lambda m, x: x * math.log(m.a.out_channels),
        lambda m, x: x / (m.a.out_channels + m.b.out_channels),
        lambda m, x: x * (m.a.out_channels - m.b.out_channels),
        lambda m, x: x * torch.tensor(1.7 * m.a.out_channels),
        lambda m, x: x * torch.full((1,), m.a.out_channels + 1.0),
        lambda m, x: x * 3 * m.norm.num_features,
        lambda m, x: x + m.a.out_channels,
        lambda m, x: x ** (1 / m.a.out_channels),
        lambda m, x: x.clamp(max=m.a.out_channels / 100),
        lambda m, x: F.leaky_relu(x - 0.5, 1 / (3 * m.a.out_channels)),
        lambda m, x: F.elu(x - 1, alpha=1 / m.a.out_channels),
        lambda m, x: torch.addcmul(x, x, x, value=1 / m.a.out_channels),
        lambda m, x: torch.sub(x, x * x, alpha=1 / m.a.out_channels),
        lambda m, x: F.layer_norm(x, x.shape[2:], eps=m.a.out_channels / 100),
        lambda m, x: x * len(str(m.a)),
        lambda m, x: x if m.a.out_channels == 12 else 1 / 0,
        lambda m, x: x * 2 if x.shape[1] > 6 else x * 3,
        lambda m, x: x / min(x.shape[1], 6),
        lambda m, x: x * round(x.shape[1] / 100, 1),
        lambda m, x: x / x.stride(0),
    ],
)
def test_a_number_of_a_width_freezes_it(make):
    torch.manual_seed(0)
    assert "a" not in agrees(Numbers(make))


def test_the_difference_of_equal_widths_freezes_them():
    """It stays the same where both lose as much."""
    model = Numbers(lambda m, x: x * (1 + x.shape[1] - m.b.weight.shape[0]), widths=(12, 12))
    assert agrees(model) in ([], ["a"], ["b"])  # one that stays is enough


def test_numbers_of_no_width_freeze_nothing():
    assert agrees(Numbers(lambda m, x: F.leaky_relu(x * 0.5 - 12, 0.1).clamp(max=10) + 12 / 10)) == ["a", "b"]


COUNT = 12


class Chain(nn.Module):
    """Layers one after the other; what comes out of some is multiplied by a number made of its width.

    Attributes:
        calls: how often it ran.
    """

    calls = 0

    def __init__(self, scaled, number, widths=(8,)):
        super().__init__()
        self.scaled, self.number = scaled, number
        each = [widths[place % len(widths)] for place in range(COUNT)]
        self.layers = nn.ModuleList(nn.Conv2d(n, m, 1) for n, m in zip([3, *each], [*each, 2], strict=True))

    def forward(self, x):
        """The output of the last layer."""
        Chain.calls += 1
        for place, layer in enumerate(self.layers):
            x = layer(x)
            if place in self.scaled:
                x = x * self.number(x.shape[1])
            elif place < COUNT:
                x = x * 8**-0.5  # the same number in the dense model, of no width
        return x


def frozen(model):
    """The places of layers whose channels may not go, and how often the model ran."""
    Chain.calls = 0
    graph = analyze(model, (torch.rand(1, 3, 4, 4),))
    places = {int(name.split(".")[1]) for name, group in graph.groups.items() if not group.prunable}
    return places - {COUNT}, Chain.calls


@pytest.mark.parametrize("widths", [(8,), (8, 4, 16)], ids=str)
@pytest.mark.parametrize(
    "number",
    [lambda n: n**-0.5, lambda n: 1 / n, lambda n: n**0.5, float],
    ids=["1/root", "1/n", "root", "n"],
)
def test_as_many_runs_find_one_as_all(number, widths):
    one, runs = frozen(Chain({4}, number, widths))
    some, runs_of_some = frozen(Chain({0, 3, 4, 7, 9, 11}, number, widths))
    assert (one, some) == ({4}, {0, 3, 4, 7, 9, 11})
    assert runs == runs_of_some < COUNT


@pytest.mark.parametrize("number", [lambda n: n**-0.5, lambda n: 1 / (2 * n), lambda n: 1 / (n + 3)])
def test_bisection_finds_the_same(number, monkeypatch):
    model = Chain({1, 2, 8}, number, (8, 16))
    culprits, _ = frozen(model)
    monkeypatch.setattr(numbers, "find_number_culprits", lambda *_: [])
    assert frozen(model)[0] == culprits == {1, 2, 8}
