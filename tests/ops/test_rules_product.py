"""Rules of ops that produce channels, held against the masked model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from autoprune.graph import analyze


@pytest.mark.parametrize(
    ("function", "outputs", "names"),
    [
        (nn.Conv2d(12, 8, 3, padding=1), 8, ["enter", "function"]),
        (nn.Conv2d(12, 8, 3, stride=2, dilation=2, bias=False), 8, ["enter", "function"]),
        (nn.ConvTranspose2d(12, 8, 2, stride=2), 8, ["enter", "function"]),
        (nn.Conv2d(12, 12, 3, groups=12), 12, ["enter"]),
        (nn.Conv2d(12, 24, 3, groups=12), 24, ["enter"]),
        (nn.Conv2d(12, 12, 1, groups=3), 12, ["enter"]),
        (nn.Conv2d(12, 6, 1, groups=3), 6, ["enter"]),
        (nn.ConvTranspose2d(12, 24, 2, groups=12), 24, ["enter"]),
        (nn.ConvTranspose2d(12, 9, 2, groups=3), 9, ["enter"]),
    ],
)
def test_convolutions(check_op, function, outputs, names):
    assert list(check_op(function, outputs).prunable) == names


@pytest.mark.parametrize(
    ("groups", "outputs", "unit"), [(12, 12, 1), (12, 24, 1 + 2), (3, 12, 4), (3, 6, 4 + 2), (2, 24, 6 + 12)]
)
def test_groups_of_a_convolution_are_removed_whole(check_op, groups, outputs, unit):
    # Inputs and outputs of one of its groups; as many of both are the same channels.
    graph = check_op(nn.Conv2d(12, outputs, 1, groups=groups), outputs)
    assert graph.groups["enter"].unit == unit


class Deform(nn.Module):
    def __init__(self, groups=1, offset_groups=1):
        super().__init__()
        self.offset = nn.Conv2d(12, 18 * offset_groups, 3, padding=1)
        self.conv = DeformConv2d(12, 12, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.conv(x, self.offset(x))


@pytest.mark.parametrize(
    ("groups", "offset_groups", "reason"),
    [(1, 1, None), (3, 1, None), (1, 2, "has several groups of offsets")],
)
def test_deformable_convolutions(groups, offset_groups, reason, randomize, keep_sets, compare):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 12, 1), Deform(groups, offset_groups), nn.Conv2d(12, 2, 1))
    model = randomize(model.double())
    inputs = (torch.rand(2, 3, 6, 6, dtype=torch.float64),)
    graph = analyze(model, inputs)
    assert graph.groups["0"].prunable == (reason is None)
    assert reason is None or reason in graph.groups["0"].reason
    count, worst = compare(model, graph, inputs, keep_sets(graph, 1, 0.5), depth=1)
    assert count >= 1
    assert worst <= 1e-12


class Linear(nn.Module):
    """A linear layer over the channels, by way of ``product``."""

    def __init__(self, product):
        super().__init__()
        self.weight, self.bias, self.product = (
            nn.Parameter(torch.randn(8, 12)),
            nn.Parameter(torch.randn(8)),
            product,
        )

    def forward(self, x):
        return self.product(x.movedim(1, -1), self.weight, self.bias).movedim(-1, 1)


@pytest.mark.parametrize(
    "product",
    [
        F.linear,
        lambda x, w, b: x @ w.T + b,
        lambda x, w, b: torch.addmm(b, x.flatten(0, 2), w.T).unflatten(0, x.shape[:3]),
        lambda x, w, b: torch.baddbmm(b, x.flatten(1, 2), w.T.expand(x.shape[0], -1, -1)).unflatten(
            1, x.shape[1:3]
        ),
        lambda x, w, b: torch.einsum("nhwc,dc->nhwd", x, w) + b,
    ],
)
def test_matrix_products(check_op, product):
    # At width one, einsum runs elementwise products instead, which count no multiply-adds.
    graph = check_op(Linear(product), 8, fractions=(0.5, 0.2))
    assert list(graph.prunable) == ["enter", "function"]


def test_a_sum_over_channels_needs_zeros_in_one_of_its_factors(check_op):
    # exp(0) = 1 in the masked model, which a product with itself sums up.
    reason = "is summed over where removed channels are not zero"
    check_op(lambda x: torch.einsum("nchw,nchw->nhw", x.exp(), x.exp())[:, None] * x, reason=reason)
    check_op(lambda x: torch.einsum("nchw,nchw->nhw", x.exp(), x)[:, None] * x, fractions=(0.5, 0.2))


def total(x):
    """Adds the sum over channels to each: exact only where removed channels hold zeros."""
    return x + x.sum(1, keepdim=True)


class Each(nn.Module):
    """A layer on each channel by itself, summed over channels."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        channels = x if isinstance(self.layer, nn.Linear) else x.reshape(-1, 1, *x.shape[2:])
        return total(self.layer(channels).reshape(x.shape))


@pytest.mark.parametrize("layer", [nn.Linear, nn.Conv2d, nn.ConvTranspose2d])
@pytest.mark.parametrize("bias", [True, False])
def test_a_removed_channel_becomes_the_bias_of_a_layer_on_single_channels(check_op, layer, bias):
    each = Each(layer(*(6, 6) if layer is nn.Linear else (1, 1, 1), bias=bias))
    check_op(each, reason="is reduced by sum" if bias else None)


class Added(nn.Module):
    """A parameter of each channel, whose labels the sum has, and not those of the convolution before."""

    def __init__(self):
        super().__init__()
        self.other = nn.Parameter(torch.randn(12, 1, 1))

    def forward(self, x):
        return self.other + x


def test_channels_that_a_bias_fills_are_known_by_any_of_their_labels(check_op):
    check_op(nn.Sequential(Added(), Each(nn.Linear(6, 6))), reason="is reduced by sum")
    check_op(nn.Sequential(Added(), Each(nn.Linear(6, 6, bias=False))))


def test_a_product_of_matrices_of_each_channel_needs_zeros_in_one_of_them(check_op):
    def gram(x, y):  # channels as the batch of a product
        squares = torch.bmm(x.flatten(0, 1), y.flatten(0, 1).transpose(1, 2))
        return total(squares.reshape(*x.shape[:2], 6, 6))

    check_op(lambda x: gram(x.exp(), x.exp()), reason="is reduced by sum")
    check_op(lambda x: gram(x.exp(), x))


def test_heads_that_share_keys_stay(check_op):
    def grouped(x):  # 12 heads of queries, 3 of keys and values
        keys = torch.ones(x.shape[0], 3, 36, 1, dtype=x.dtype)
        x = x.flatten(2)[..., None]
        out = F.scaled_dot_product_attention(x, keys, keys, enable_gqa=True)
        return out[..., 0].unflatten(2, (6, 6))

    check_op(grouped, reason="meets an axis of another length")


def test_attention_fixes_what_sets_its_scale_and_its_positions(check_op):
    def over_channels(x):  # channels as positions
        return F.scaled_dot_product_attention(*[x.flatten(2)[:, None]] * 3)[:, 0].unflatten(2, x.shape[2:])

    def over_space(x):  # channels as the width of a head
        x = x.flatten(2).transpose(1, 2).contiguous()[:, None]
        return F.scaled_dot_product_attention(x, x, x)[:, 0].transpose(1, 2).unflatten(2, (6, 6))

    check_op(over_channels, reason="is a softmax over positions")
    check_op(over_space, reason="sets the scale of attention")


def test_channels_as_heads_and_as_values_of_attention_can_be_removed(check_op):
    def heads(x):  # each channel a head of width one
        x = x.flatten(2)[..., None]
        return F.scaled_dot_product_attention(x, x, x)[..., 0].unflatten(2, (6, 6))

    def values(x):
        queries = torch.ones(x.shape[0], 1, 36, 4, dtype=x.dtype)
        v = x.flatten(2).transpose(1, 2)[:, None]
        return F.scaled_dot_product_attention(queries, queries, v)[:, 0].transpose(1, 2).unflatten(2, (6, 6))

    check_op(heads)
    check_op(values)


def test_rows_of_an_embedding_stay_and_its_width_is_prunable(randomize, keep_sets, compare):
    model = randomize(nn.Sequential(nn.Embedding(10, 6), nn.Linear(6, 3)).double())
    inputs = (torch.tensor([[1, 4, 7]]),)
    graph = analyze(model, inputs)
    assert {name: (g.width, g.prunable) for name, g in graph.groups.items()} == {
        "0": (6, True),
        "1": (3, False),
    }
    assert compare(model, graph, inputs, keep_sets(graph, 1, 0.5), depth=1)[1] <= 1e-12


class Lookup(nn.Module):
    """Adds a row of a table for each channel: that of its largest value."""

    def __init__(self, embedding):
        super().__init__()
        self.table, self.embedding = nn.Embedding(36, 1), embedding

    def forward(self, x):
        largest = x.flatten(2).argmax(-1)
        rows = self.table(largest) if self.embedding else self.table.weight[largest]
        return x + rows[..., None]


@pytest.mark.parametrize("embedding", [True, False])
def test_channels_that_are_an_index_are_frozen(check_op, embedding):
    check_op(Lookup(embedding), reason="is used as an index")
