"""Heads of attention as channels, against PyTorch's own attention and the masked model."""

from itertools import product

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.vision_transformer import VisionTransformer

from autoprune.graph import analyze, mask, prune
from autoprune.modules.attention import HeadAttention

IMAGES = torch.rand(2, 3, 16, 16, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _repeatable():
    torch.manual_seed(0)


def adapted(attention):
    """The same module with the forward that takes any number of heads."""
    attention.__class__ = HeadAttention
    return attention


@pytest.mark.parametrize(
    ("options", "batched", "cross"),
    [*product(
        [{}, {"batch_first": True}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True},
         {"kdim": 6, "vdim": 10}],
        [True, False],
        [True, False],
    )],
)  # fmt: skip
def test_the_forward_is_that_of_pytorch(options, batched, cross):
    theirs = nn.MultiheadAttention(12, 3, dtype=torch.float64, **options)
    ours = adapted(nn.MultiheadAttention(12, 3, dtype=torch.float64, **options))
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours.load_state_dict(theirs.state_dict())

    def sequence(length, width):
        shape = (length, 2, width) if batched else (length, width)
        x = torch.rand(shape, dtype=torch.float64)
        return x.transpose(0, 1).contiguous() if batched and theirs.batch_first else x

    query = key = value = sequence(5, 12)
    if cross or "kdim" in options:
        key, value = sequence(7, theirs.kdim), sequence(7, theirs.vdim)
    shape = (5, key.shape[1 if batched and theirs.batch_first else 0])
    mask = torch.rand(shape) < 0.3
    mask[:, 0] = False
    padding = torch.zeros((2, shape[1]) if batched else (shape[1],), dtype=torch.bool)
    padding[..., -1] = True
    per_head = torch.rand(6 if batched else 3, *shape, dtype=torch.float64)
    for given in (
        {}, {"need_weights": False}, {"average_attn_weights": False}, {"attn_mask": mask},
        {"attn_mask": per_head}, {"key_padding_mask": padding, "need_weights": False},
        {"attn_mask": mask, "key_padding_mask": padding},
    ):  # fmt: skip
        expected, got = theirs(query, key, value, **given), ours(query, key, value, **given)
        for a, b in zip(got, expected, strict=True):
            assert (a is None) == (b is None)
            if b is not None:
                torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


class Transformer(nn.Module):
    """Encoder and decoder of PyTorch on patches, with masks."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 24, 4, 4)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 6, 40, batch_first=True), 2)
        self.decoder = nn.TransformerDecoderLayer(24, 4, 20, batch_first=True)
        self.queries = nn.Parameter(torch.rand(5, 24))
        self.head = nn.Linear(24, 3)

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        hidden = torch.zeros(x.shape[:2], dtype=torch.bool)
        hidden[1, -3:] = True
        memory = self.encoder(x, src_key_padding_mask=hidden)
        queries = self.queries.expand(x.shape[0], -1, -1)
        return self.head(self.decoder(queries, memory, memory_key_padding_mask=hidden))


class Handwritten(nn.Module):
    """Attention as users write it, the number of heads inferred by a view; perhaps with a bias per head."""

    def __init__(self, bias):
        super().__init__()
        self.patches, self.qkv = nn.Conv2d(3, 24, 4, 4), nn.Linear(24, 72)
        self.out, self.head = nn.Linear(24, 24), nn.Linear(24, 3)
        self.bias = nn.Parameter(torch.rand(4, 16, 16)) if bias else None

    def forward(self, x):
        x = self.patches(x).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, -1, 6).permute(2, 0, 3, 1, 4)
        heads = F.scaled_dot_product_attention(q, k, v, self.bias)
        return self.head(x + self.out(heads.transpose(1, 2).flatten(2)))


def vision_transformer():
    return VisionTransformer(16, 4, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=48, num_classes=5)


@pytest.mark.parametrize(
    ("make", "attentions"),
    [(vision_transformer, {4: 2}), (Transformer, {6: 2, 4: 2}), (lambda: Handwritten(False), {4: 1}),
     (lambda: Handwritten(True), {4: 1})],
)  # fmt: skip
@pytest.mark.parametrize("fraction", [None, 0])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_heads_are_pruned_exactly(make, attentions, fraction, randomize, keep_sets, counted, costed):
    model = randomize(make().double())
    for parameter in model.parameters():
        if parameter.dim() > 1:
            nn.init.normal_(parameter, std=0.3)
    graph = analyze(model, (IMAGES,))
    inner = [g for g in graph.prunable.values() if any("qkv" in m[0] or "in_proj" in m[0] for m in g.members)]
    inner = [g for g in inner if "patches" not in g.name]
    assert sorted(g.width for g in inner) == sorted(h for h, n in attentions.items() for _ in range(n))

    keep = keep_sets(graph, 3, fraction)
    fused = torch.backends.mha.get_fastpath_enabled()
    try:
        for enabled in (True, False):
            torch.backends.mha.set_fastpath_enabled(enabled)
            with torch.no_grad():
                got, expected = prune(model, graph, keep)(IMAGES), mask(model, graph, keep)(IMAGES)
            assert (got - expected).abs().max() <= 1e-12 * expected.abs().max()
        pruned = prune(model, graph, keep).requires_grad_(False)
        assert costed(graph, keep)[:2] == counted(pruned, (IMAGES,))[:2]
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def test_the_analysis_leaves_the_attention_as_it_was():
    model = Transformer().double()
    before = [type(module) for module in model.modules()]
    analyze(model, (IMAGES,))
    assert [type(module) for module in model.modules()] == before


def test_a_pruned_attention_trains_and_copies(keep_sets):
    model = Transformer().double()
    graph = analyze(model, (IMAGES,))
    pruned = prune(model, graph, keep_sets(graph, 1, 0.5)).train()
    pruned(IMAGES).square().sum().backward()
    assert all(parameter.grad is not None for parameter in pruned.parameters())
    again = prune(model, graph, keep_sets(graph, 1, 0.5))
    again.load_state_dict(pruned.state_dict())
    torch.testing.assert_close(again.eval()(IMAGES), pruned.eval()(IMAGES))


def test_heads_stay_where_their_weights_are_averaged():
    class Averaged(Handwritten):
        def __init__(self):
            super().__init__(False)
            self.attention = nn.MultiheadAttention(24, 4, batch_first=True)

        def forward(self, x):
            x = self.patches(x).flatten(2).transpose(1, 2)
            out, weights = self.attention(x, x, x)
            return self.head(out), weights

    graph = analyze(Averaged().double(), (IMAGES,))
    group = next(g for g in graph.groups.values() if any("in_proj_weight" in m[0] for m in g.members)
                 and "patches" not in g.name)  # fmt: skip
    assert not group.prunable
    assert "mean" in group.reason


class Attending(nn.Module):
    """Attention beside a residual path, with whatever options."""

    def __init__(self, options, batched, given):
        super().__init__()
        self.stem, self.head = nn.Linear(3, 12), nn.Linear(12, 2)
        self.attention = nn.MultiheadAttention(12, 3, **options)
        self.batched, self.given, self.weights = batched, given, None

    def forward(self, x):
        x = self.stem(x if self.batched else x[0])
        attended, self.weights = self.attention(x, x, x, **self.given)
        return self.head(x + attended)


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("options", [{}, {"batch_first": True}, {"bias": False}, {"add_zero_attn": True}])
@pytest.mark.parametrize("given", [{"need_weights": False}, {"average_attn_weights": False}])
def test_all_heads_can_go(options, batched, given):
    model, x = Attending(options, batched, given).double(), torch.rand(4, 5, 3, dtype=torch.float64)
    graph = analyze(model, (x,))
    assert graph.emptiable == ("attention.in_proj",)
    pruned, masked = (make(model, graph, {"attention.in_proj": []}) for make in (prune, mask))
    torch.testing.assert_close(pruned(x), masked(x), rtol=1e-12, atol=1e-12)
    parameters = sum(parameter.numel() for parameter in pruned.parameters())
    assert parameters == round(graph.mparams({"attention.in_proj": 0}) * 1e6)
    assert (pruned.weights is None) == (masked.weights is None)
    if masked.weights is not None:
        assert pruned.weights.shape == masked.weights[..., :0, :, :].shape


class Reading(nn.Module):
    """An attention whose inputs nothing ties to its outputs."""

    def __init__(self, **options):
        super().__init__()
        self.enter, self.attention = nn.Linear(6, 8), nn.MultiheadAttention(8, 2, batch_first=True, **options)
        self.leave = nn.Linear(8, 3)

    def forward(self, x):
        y = self.enter(x)
        return self.leave(F.relu(self.attention(y, x if self.attention.kdim == 6 else y,
                                                x if self.attention.kdim == 6 else y)[0]))  # fmt: skip


@pytest.mark.parametrize("options", [{}, {"kdim": 6, "vdim": 6}])
def test_an_attention_may_lose_inputs_and_keep_all_heads(options, randomize, compare):
    torch.manual_seed(0)
    model, inputs = randomize(Reading(**options).double()), (torch.rand(2, 5, 6, dtype=torch.float64),)
    graph = analyze(model, inputs)
    assert graph.groups["enter"].prunable
    assert compare(model, graph, inputs, {"enter": [1, 2, 6]}, depth=1)[1] <= 1e-12
