"""Widths that set numbers in a model's code are found at once, and bisection finds the same ones."""

import pytest
import torch
from torch import nn

from autoprune.graph import analyze, verify

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
    monkeypatch.setattr(verify, "find_number_culprits", lambda *_: [])
    assert frozen(model)[0] == culprits == {1, 2, 8}
