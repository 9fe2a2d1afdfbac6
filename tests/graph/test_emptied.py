"""Emptied branches: pruned equals masked, cost equals torch's count, and what is left runs as any module."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.graph import analyze, mask, prune
from autoprune.graph.emptied import Constant, Nothing, _ShapeRule

X = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(3))


class Block(nn.Module):
    """A residual branch around ``branch``, between a stem and a head."""

    def __init__(self, *branch):
        super().__init__()
        self.stem, self.branch, self.head = nn.Conv2d(3, 8, 1), nn.Sequential(*branch), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        y = self.branch(x)
        y += x  # writes to what the branch returns, as torchvision's ResNets do
        return self.head(y)


class SqueezeExcitation(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.pool, self.fc1, self.fc2 = (
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, 4, 1),
            nn.Conv2d(4, width, 1),
        )

    def forward(self, x):
        return x * self.fc2(F.relu(self.fc1(self.pool(x)))).sigmoid()


class C2f(nn.Module):
    """YOLO's block: halves of one convolution, bottlenecks on the last, all concatenated."""

    def __init__(self, shortcut):
        super().__init__()
        self.shortcut, self.stem, self.head = shortcut, nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.inner = nn.ModuleList(
            nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.SiLU(),
                          nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.SiLU())
            for _ in range(2)
        )  # fmt: skip
        self.join = nn.Conv2d(16, 8, 1)

    def forward(self, x):
        parts = list(F.silu(self.stem(x)).chunk(2, 1))
        for block in self.inner:
            parts.append(parts[-1] + block(parts[-1]) if self.shortcut else block(parts[-1]))
        return self.head(F.relu(self.join(torch.cat(parts, 1))))


class Transformer(nn.Module):
    """A small DETR: queries attend to the positions of an encoder."""

    def __init__(self):
        super().__init__()
        encoder = nn.TransformerEncoderLayer(16, 4, 24, 0.0, batch_first=True)
        decoder = nn.TransformerDecoderLayer(16, 4, 24, 0.0, batch_first=True)
        self.stem, self.encoder = nn.Conv2d(3, 16, 4, 4), nn.TransformerEncoder(encoder, 2)
        self.decoder = nn.TransformerDecoder(decoder, 2)
        self.queries = nn.Parameter(torch.randn(5, 16), requires_grad=False)
        self.classes, self.boxes = nn.Linear(16, 3), nn.Linear(16, 4)

    def forward(self, x):
        memory = self.encoder(self.stem(x).flatten(2).transpose(1, 2))
        queried = self.decoder(self.queries.expand(len(x), -1, -1), memory)
        return self.classes(queried), self.boxes(queried).sigmoid()


class Reshaping(nn.Module):
    """An attention that shapes its heads by hand, and a feed-forward network, as Transformers has them."""

    def __init__(self):
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.q, self.k, self.v, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.inner, self.outer, self.classes = nn.Linear(16, 32), nn.Linear(32, 16), nn.Linear(16, 3)

    def forward(self, x):
        x = self.stem(x).flatten(2).transpose(1, 2)
        shape = (*x.shape[:2], -1, 4)
        q, k, v = (layer(x).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        heads = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(*x.shape[:2], -1)
        x = x + self.out(heads)
        return self.classes(x + self.outer(F.gelu(self.inner(self.norm(x)))))


def bottleneck(norm=nn.BatchNorm2d):
    return Block(nn.Conv2d(8, 6, 1, bias=False), norm(6), nn.ReLU(True),
                 nn.Conv2d(6, 6, 3, padding=1), norm(6), nn.ReLU(True),
                 nn.Conv2d(6, 8, 1, bias=False), norm(8))  # fmt: skip


def inverted():
    return Block(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.Hardswish(True),
                 nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.PReLU(12), SqueezeExcitation(12),
                 nn.Conv2d(12, 8, 1, bias=False), nn.BatchNorm2d(8))  # fmt: skip


FAMILIES = {
    "bottleneck": (bottleneck, ["branch.0", "branch.3"]),
    "group norm": (lambda: bottleneck(lambda n: nn.GroupNorm(2, n)), []),
    "inverted": (inverted, ["branch.0", "branch.5.fc1"]),
    "C2f": (lambda: C2f(True), ["inner.0.0", "inner.1.0"]),
    "C2f, no shortcut": (lambda: C2f(False), ["inner.0.0", "inner.0.3", "inner.1.0", "inner.1.3"]),
    "transformer": (
        Transformer,
        [f"{half}.layers.{n}.{part}" for half, parts in (("encoder", ("self_attn.in_proj", "linear1")),
         ("decoder", ("self_attn.in_proj", "multihead_attn.in_proj", "linear1"))) for n in (0, 1)
         for part in parts if (half, n, part) != ("decoder", 0, "self_attn.in_proj")],
    ),
    "reshaping": (Reshaping, ["q", "inner"]),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _products_in_the_open():
    """The fused layer of torch's attention modules hides its products from FlopCounterMode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(fast)


@pytest.mark.parametrize("family", FAMILIES)
def test_emptied_branches_are_exact(family, randomize, keep_sets, compare, counted, costed):
    build, expected = FAMILIES[family]
    torch.manual_seed(0)
    model = randomize(build()).double()
    inputs = (X.double(),)
    graph = analyze(model, inputs)
    assert [name for name in graph.emptiable if family != "group norm"] == expected
    several = keep_sets(graph, 5)
    alone = [{name: []} for name in graph.emptiable]
    together = [{**several, **{name: [] for name in graph.emptiable[k::2]}} for k in (0, 1)]
    for keep in [*alone, *together]:
        # Inside a branch a constant is the norm's result already.
        count, worst = compare(model, graph, inputs, keep, depth=1)
        assert count >= 1
        assert worst <= 1e-12, keep
        pruned = prune(model, graph, keep)
        assert costed(graph, keep)[:2] == counted(pruned, inputs)[:2], keep
        assert not any(p.requires_grad and not p.numel() for p in pruned.parameters())


def kinds(module):
    return [type(part) for part in module.modules() if not list(part.children())]


def test_all_that_remains_of_a_branch_is_one_constant():
    model = bottleneck().eval()
    pruned = prune(model, analyze(model, (X,)), {"branch.3": []})
    nothing, skip = (Nothing, nn.Identity), (nn.ReLU,)
    assert kinds(pruned.branch) == [*nothing, *skip, *nothing, *skip, Constant, nn.Identity]
    assert [(name, tuple(p.shape)) for name, p in pruned.branch.named_parameters()] == [("6.bias", (8,))]
    assert pruned.branch[6].stands_for == "branch.7"


def test_what_an_emptied_group_alone_is_made_from_goes_too():
    graph = analyze(bottleneck(), (X,))
    assert graph.closed(["branch.3"]) == ["branch.3", "branch.0"]
    assert graph.closed(["branch.0"]) == [
        "branch.0"
    ]  # the next holds a constant, which the masked model has too
    assert graph.gflops({"branch.3": 0}) == graph.gflops({"branch.3": 0, "branch.0": 0})


def test_a_norm_behind_something_else_is_not_folded(randomize):
    model = randomize(Block(nn.Conv2d(8, 6, 1), nn.Conv2d(6, 8, 1), nn.ReLU(), nn.BatchNorm2d(8)))
    graph = analyze(model, (X,))
    pruned = prune(model, graph, {"branch.0": []})
    assert kinds(pruned.branch) == [Nothing, Constant, nn.ReLU, nn.BatchNorm2d]
    torch.testing.assert_close(pruned(X), mask(model, graph, {"branch.0": []})(X))


class Tokens(nn.Module):
    """A feed-forward network over tokens [N, L, C], L = C, and a norm behind it."""

    def __init__(self, norm):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.enter, self.leave, self.norm = nn.Linear(8, 6), nn.Linear(6, 8), norm

    def forward(self, x):
        x = self.stem(x)
        tokens = F.adaptive_avg_pool2d(x, (2, 4)).flatten(2).transpose(1, 2)
        tokens = self.norm(self.leave(F.relu(self.enter(tokens)))).transpose(1, 2).unflatten(2, (2, 4))
        return self.head(x + F.interpolate(tokens, x.shape[2:]))


class Transposing(nn.BatchNorm1d):
    def forward(self, x):
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class Own(nn.Module):
    """A norm by ``code``, which gets what it reads and its scale."""

    def __init__(self, code):
        super().__init__()
        self.weight, self.code = nn.Parameter(torch.rand(8) + 1), code

    def forward(self, *x):
        return self.code(*x, self.weight[:, None, None])


def apart(code):
    return Block(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1), Own(code))


@pytest.mark.parametrize(
    ("build", "folded"),
    [
        (lambda: Tokens(nn.BatchNorm1d(8)), False),  # its channels are the tokens
        (lambda: Tokens(nn.GroupNorm(2, 8)), False),
        (lambda: Tokens(nn.InstanceNorm1d(8, affine=True, track_running_stats=True)), False),
        (lambda: Tokens(Transposing(8)), True),
        (lambda: apart(lambda x, scale: x * scale), True),
        (lambda: apart(lambda x, scale: F.avg_pool2d(x * scale, 3, 1, 1)), False),  # a border of zeros
        (lambda: apart(lambda x, scale: x * scale * torch.linspace(0, 1, x.shape[-1])), False),
        (lambda: apart(lambda x, scale: x * scale * x.shape[-1]), False),
    ],
)
def test_a_norm_is_folded_where_it_acts_on_each_channel_alone(build, folded, randomize):
    torch.manual_seed(0)
    model = randomize(build()).eval()
    graph = analyze(model, (X,))
    (name,) = graph.emptiable
    pruned, masked = prune(model, graph, {name: []}), mask(model, graph, {name: []})
    for x in (X, X[..., :12, :10]):
        torch.testing.assert_close(pruned(x), masked(x))
    norm = pruned.norm if isinstance(model, Tokens) else pruned.branch[3]
    assert isinstance(norm, nn.Identity) == folded


class Elsewhere(Block):
    """A residual branch whose parts the code takes from a dict that is no module."""

    def __init__(self):
        super().__init__(nn.Conv2d(8, 6, 1), nn.ReLU(), nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8))
        self.parts = {"all": list(self.branch)}

    def forward(self, x):
        x = y = F.relu(self.stem(x))
        for part in self.parts["all"]:
            y = part(y)
        return self.head(x + y)


def test_a_layer_is_replaced_wherever_the_code_refers_to_it(randomize):
    model = randomize(Elsewhere())
    graph = analyze(model, (X,))
    keep = {"branch.0": []}
    pruned = prune(model, graph, keep)
    torch.testing.assert_close(pruned(X), mask(model, graph, keep)(X))
    assert kinds(pruned.branch) == [Nothing, nn.ReLU, Constant, nn.Identity]


def test_the_fused_layer_of_torch_is_left(randomize):
    """It reads the weights of all its layers, in eval mode without gradients."""
    torch.backends.mha.set_fastpath_enabled(True)
    torch.manual_seed(0)
    model = randomize(Transformer())
    graph = analyze(model, (X,))
    for name in graph.emptiable:
        with torch.inference_mode():
            got, expected = prune(model, graph, {name: []})(X), mask(model, graph, {name: []})(X)
        torch.testing.assert_close(got, expected)


def test_an_emptied_model_is_trained_copied_and_loaded_as_any(randomize):
    calls = []
    model = randomize(bottleneck())
    model.branch[6].register_forward_hook(lambda *_: calls.append(1))
    graph = analyze(model, (X,))
    pruned = prune(model.train(), graph, {"branch.0": [], "branch.3": []})
    assert all(module.training for module in pruned.modules())
    calls.clear()
    pruned(X).square().sum().backward()
    assert calls == [1]
    assert all(p.grad is not None for p in pruned.parameters())
    other = prune(copy.deepcopy(model), graph, {"branch.3": []})
    other.load_state_dict(pruned.state_dict())
    assert torch.equal(copy.deepcopy(other).eval()(X), pruned.eval()(X))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 5, (3, 2), stride=(2, 1), padding=(1, 0), dilation=2), (2, 4, 9, 8)),
        (nn.Conv2d(4, 5, 3, padding="same", dilation=2), (4, 9, 8)),
        (nn.Conv1d(4, 5, 3, padding="valid"), (2, 4, 9)),
        (nn.Conv3d(4, 5, 2, stride=2), (1, 4, 6, 5, 4)),
        (nn.ConvTranspose2d(4, 5, 3, stride=2, padding=1, output_padding=1), (2, 4, 5, 6)),
        (nn.ConvTranspose1d(4, 5, 4, stride=3, dilation=2), (2, 4, 5)),
        (nn.Linear(4, 5), (2, 3, 4)),
        (nn.Linear(4, 5), (4,)),
    ],
)
def test_shapes_are_those_of_the_layer(layer, shape):
    assert _ShapeRule(layer)(torch.rand(shape), 5) == layer(torch.rand(shape)).shape
