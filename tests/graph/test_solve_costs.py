"""The cost model of a trace, against counts by hand and against the pruned models themselves."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from autoprune.graph import analyze, prune


@given(st.integers(1, 4), st.integers(1, 6))
def test_costs_are_sums_of_products_of_widths(parts, a, b):
    pixels = 2 * 5 * 5
    widths = parts.vector({"a": a, "b": b})
    assert parts.cost.flops(widths) == pixels * (3 * a + 3 * b + b * b + (a + b) * 2)
    parameters = (3 * a + a) + (3 * b + b) + (b * b + b) + (2 * (a + b) + 2)
    assert parts.cost.params(widths) == parameters + 5 * 5 + 5  # a layer that never runs is kept whole


class Branch(nn.Module):
    """A branch beside a skip connection; ``norm`` may be folded into the last layer once that is empty."""

    def __init__(self, bias):
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 1)
        self.outer, self.norm, self.head = (
            nn.Conv2d(4, 6, 1, bias=bias),
            nn.BatchNorm2d(6),
            nn.Conv2d(6, 2, 1),
        )

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.norm(self.outer(self.inner(x).relu())))


@pytest.mark.parametrize("bias", [False, True])
def test_a_layer_without_inputs_counts_what_it_has_left(bias):
    model = Branch(bias).eval()
    graph = analyze(model, (torch.rand(1, 3, 4, 4),))
    pruned = prune(model, graph, {"inner": []})
    assert graph.mparams({"inner": 0}) * 1e6 == sum(p.numel() for p in pruned.parameters())
