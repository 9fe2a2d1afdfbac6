"""Attentions whose scale follows their width: rows of the queries make up for it, if they make no more."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.graph import analyze, mask, prune

X = torch.rand(2, 5, 6, dtype=torch.float64)


class Packed(nn.Module):
    """Queries, keys and values from one layer; ``how`` is code between them and the attention."""

    def __init__(self, how=lambda q, k, v: (q, k, v), bias=True):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 24), nn.Linear(24, 3)
        self.qkv, self.out = nn.Linear(24, 96, bias=bias), nn.Linear(32, 24)
        self.num_heads, self.head_dim, self.how = 4, 8, how

    def forward(self, x):
        x = self.stem(x)
        b, n, _ = x.shape
        packed = self.qkv(x).reshape(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = self.how(*packed.permute(2, 0, 3, 1, 4).unbind(0))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(self.out(y.reshape(b, n, self.num_heads * self.head_dim)) + x)


@pytest.mark.parametrize("fraction", [0.5, 0])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("how", [lambda q, k, v: (q, k, v), lambda q, k, v: (q.contiguous(), k[:, :], v * 2)])
def test_the_queries_make_up_for_the_scale(how, bias, fraction, randomize, keep_sets):
    torch.manual_seed(0)
    model = randomize(Packed(how, bias).double())
    graph = analyze(model, (X,))
    assert graph.groups["qkv"].prunable
    (rule,) = graph.scales
    assert {(name, tuple(rows)) for name, _, rows in rule.rows} == {
        (f"qkv.{part}", tuple(range(32))) for part in (("weight", "bias") if bias else ("weight",))
    }
    keep = keep_sets(graph, 1, fraction)
    pruned, masked = prune(model, graph, keep), mask(model, graph, keep)
    torch.testing.assert_close(pruned(X), masked(X), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "how",
    [
        lambda q, k, v: (q, q, v),  # the keys are the queries
        lambda q, k, v: (q, k, v + q),
        lambda q, k, v: (F.relu(q) + 1, k, v),  # no factor goes through
    ],
)
def test_widths_stay_where_the_rows_make_something_else_too(how):
    graph = analyze(Packed(how).double(), (X,))
    assert not graph.groups["qkv"].prunable
    assert graph.scales == ()


def test_a_weight_that_is_read_elsewhere_is_not_scaled():
    class Tied(Packed):
        def forward(self, x):
            return super().forward(x) * self.qkv.weight.square().sum()

    graph = analyze(Tied().double(), (X,))
    assert graph.scales == ()
    assert "scale of attention" in next(g.reason for g in graph.groups.values() if g.name.startswith("qkv"))


def test_layers_called_twice_are_scaled_once(randomize, keep_sets):
    class Twice(Packed):
        def forward(self, x):
            return super().forward(x) + super().forward(x * 2)

    model = randomize(Twice().double())
    graph = analyze(model, (X,))
    assert len(graph.scales) == 1
    keep = keep_sets(graph, 0, 0.5)
    torch.testing.assert_close(
        prune(model, graph, keep)(X), mask(model, graph, keep)(X), rtol=1e-12, atol=1e-12
    )
