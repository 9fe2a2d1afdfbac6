"""Integer attributes of modules that lengths in the code come from, against the masked model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.graph import analyze, mask, prune

X = torch.rand(2, 5, 6, dtype=torch.float64)


class Attention(nn.Module):
    """Attention whose code takes all lengths from attributes."""

    def __init__(self, scale=None, out="merged"):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 24), nn.Linear(24, 3)
        self.query, self.key, self.value = (nn.Linear(24, 32) for _ in range(3))
        self.out = nn.Linear(32, 24)
        self.num_heads, self.head_dim, self.all_heads, self.other = 4, 8, 32, 8
        self.scale, self.how = scale, out

    def forward(self, x):
        x = self.stem(x)
        b, n, _ = x.shape
        q, k, v = (
            layer(x).view(b, n, self.num_heads, self.head_dim).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2)
        merged = self.num_heads * self.head_dim if self.how == "merged" else self.all_heads
        return self.head(self.out(y.reshape(b, n, merged)) + x)


class Split(nn.Module):
    """A block of YOLO's kind: `split` takes the number of channels of a half from an attribute."""

    def __init__(self, halves=2):
        super().__init__()
        self.enter, self.inner = nn.Linear(6, 16), nn.Linear(8, 8)
        self.leave, self.c = nn.Linear(16, 3), 16 // halves
        self.unrelated = 8

    def forward(self, x):
        a, b = self.enter(x).split((self.c, self.c), -1)
        return self.leave(torch.cat([a, self.inner(F.relu(b))], -1))


@pytest.mark.parametrize("fraction", [0.5, 0])
@pytest.mark.parametrize("build", [Attention, lambda: Attention(0.3), lambda: Attention(out="whole"), Split])
def test_attributes_follow_the_widths_exactly(build, fraction, randomize, keep_sets, counted, costed):
    torch.manual_seed(0)
    model = randomize(build().double())
    before = [dict(vars(module)) for module in model.modules()]
    graph = analyze(model, (X,))
    assert [vars(module) for module in model.modules()] == before
    inner = [name for name, group in graph.groups.items() if name not in ("stem", "head", "leave")]
    assert inner
    assert all(graph.groups[name].prunable for name in inner)
    keep = keep_sets(graph, 1, fraction)
    pruned, masked = prune(model, graph, keep), mask(model, graph, keep)
    torch.testing.assert_close(pruned(X), masked(X), rtol=1e-12, atol=1e-12)
    assert costed(graph, keep)[:2] == counted(pruned, (X,))[:2]
    set_by_surgery = {name for _, name, *_ in graph.sizes}
    assert not set_by_surgery & {"num_heads", "unrelated", "other"}
    assert all(getattr(pruned, name) < getattr(model, name) for name in set_by_surgery)


def test_axes_that_follow_one_attribute_lose_channels_together():
    graph = analyze(Attention().double(), (X,))
    tensors = {member.tensor for member in graph.groups["query"].members}
    assert {"query.weight", "key.weight", "value.weight", "out.weight"} <= tensors


def test_a_length_that_is_a_literal_stays():
    class Literal(Attention):
        def forward(self, x):
            x = self.stem(x)
            y = self.value(x).view(*x.shape[:2], 4, 8).flatten(2)
            return self.head(self.out(y) + x)

    model = Literal().double()
    model.other = 7
    model.head_dim = 9  # no attribute has a value that the literal can be computed from
    graph = analyze(model, (X,))
    assert not graph.groups["value"].prunable
    assert "fixed length in the model's code" in graph.groups["value"].reason
    assert graph.sizes == ()


def test_an_attribute_that_the_code_does_not_use_is_left_alone():
    """`other` is as long as a head is: it is tried, and given up."""

    class Decoy(Attention):
        def forward(self, x):
            x = self.stem(x)
            y = self.value(x).view(*x.shape[:2], 4, self.width()).flatten(2)
            return self.head(self.out(y) + x)

        def width(self):
            return self.all_heads // self.num_heads

    model = Decoy().double()
    graph = analyze(model, (X,))
    assert graph.groups["value"].prunable
    assert [(module, name) for module, name, *_ in graph.sizes] == [("", "all_heads")]


class Grouped(nn.Module):
    """Queries in three groups in training, as of a Group DETR, and in one otherwise; heads by attributes.

    `heads` is as long as a head is wide, so it is tried first; the code takes something else from it, too.
    """

    def __init__(self):
        super().__init__()
        self.queries, self.count = nn.Parameter(torch.rand(15, 6)), 5
        self.value, self.offset = nn.Linear(6, 16), nn.Linear(6, 8)
        self.heads, self.whole = 4, 16
        self.leaves = nn.ModuleList(nn.Linear(16, 3) for _ in range(3))

    def forward(self, x):
        queries = (self.queries if self.training else self.queries[: self.count]) + x.mean()
        value = self.value(queries).view(len(queries), self.heads, self.whole // self.heads)
        offset = self.offset(queries).view(len(queries), self.heads, 2).mean(2, keepdim=True)
        parts = (value * offset).relu().flatten(1).split(self.count)
        return torch.cat([leaf(part) for leaf, part in zip(self.leaves, parts, strict=False)])


def test_calls_that_training_makes_with_other_shapes_are_told_apart(randomize):
    model = randomize(Grouped().double())
    graph = analyze(model, (X,))
    assert graph.groups["value"].prunable
    assert [(module, name) for module, name, *_ in graph.sizes] == [("", "whole")]
    keep = {"value": [1, 3]}
    pruned, masked = prune(model, graph, keep), mask(model, graph, keep)
    for training in (False, True):
        outputs = [network.train(training)(X) for network in (pruned, masked)]
        assert len(outputs[0]) == (15 if training else 5)
        torch.testing.assert_close(*outputs, rtol=1e-12, atol=1e-12)
