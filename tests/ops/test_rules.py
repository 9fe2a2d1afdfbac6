"""The whole table of op rules: on random networks made of pieces that users write."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from autoprune.graph import analyze, prune
from autoprune.ops.rules import ALWAYS, RULES, numbers_of


class Split(nn.Module):
    """Cross-stage-partial block: one half goes through convolutions, every stage is concatenated."""

    def __init__(self, width):
        super().__init__()
        self.enter, self.inner = nn.Conv2d(width, 8, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.leave, self.out = nn.Conv2d(12, 8, 1), 8

    def forward(self, x):
        parts = list(self.enter(x).chunk(2, 1))
        parts.append(parts[-1] + self.inner(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Shuffle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(width, 8, 1, bias=False), nn.BatchNorm2d(8), 8

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)), inplace=True)
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)


class PixelShuffle(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.down, self.out = nn.Conv2d(width, 12, 1), nn.Conv2d(3, 6, 2, stride=2), 6

    def forward(self, x):
        return self.down(F.pixel_shuffle(self.conv(x), 2))


class Excite(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv = nn.Conv2d(width, 6, 3, padding=1)
        self.squeeze, self.excite, self.out = nn.Linear(6, 4), nn.Linear(4, 6), 6

    def forward(self, x):
        x = F.silu(self.conv(x))
        scale = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        return x * scale[:, :, None, None]


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.a, self.b, self.out = nn.Conv2d(width, 5, 3, padding=1), nn.Conv2d(5, width, 1), width
        self.gain = nn.Parameter(torch.rand(width, 1, 1))

    def forward(self, x):
        return F.gelu(x + self.gain * self.b(self.a(x).relu_()))


class Depthwise(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.deep = nn.Conv2d(width, width * 2, 3, padding=1, groups=width)
        self.point, self.out = nn.Conv2d(width * 2, 8, 1), 8

    def forward(self, x):
        return self.point(F.hardswish(self.deep(x)))


class Grouped(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.enter, self.norm = nn.Conv2d(width, 8, 1), nn.GroupNorm(4, 8)
        self.grouped, self.out = nn.Conv2d(8, 12, 3, padding=1, groups=4), 12

    def forward(self, x):
        return self.grouped(F.leaky_relu(self.norm(self.enter(x))))


class Twice(nn.Module):
    """One module called on two maps, and a raw parameter used by a functional call."""

    def __init__(self, width):
        super().__init__()
        self.shared, self.out = nn.Conv2d(width, 6, 3, padding=1), 12
        self.kernel = nn.Parameter(torch.rand(6, 6, 1, 1))

    def forward(self, x):
        small = F.interpolate(self.shared(F.max_pool2d(x, 2)), size=x.shape[-2:])
        return torch.cat([F.conv2d(self.shared(x), self.kernel), small], dim=1)


class Gate(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(width, 10, 1), nn.InstanceNorm2d(5, affine=True), 5

    def forward(self, x):
        return self.norm(F.glu(self.conv(x), 1))


class Unused(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.idle, self.out = nn.ConvTranspose2d(width, 7, 3, padding=1), nn.Linear(3, 3), 7

    def forward(self, x):
        y = torch.zeros_like(self.conv(x))
        y[:, :] = self.conv(x)
        y += 0.5
        return y.clamp(min=0)


PIECES = [Split, Shuffle, PixelShuffle, Excite, Residual, Depthwise, Grouped, Twice, Gate, Unused]


class Network(nn.Module):
    """Pieces in a row, with two inputs and two outputs."""

    def __init__(self, pieces):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.side = nn.Conv2d(1, 8, 3, padding=1)
        blocks, width = [], 8
        for piece in pieces:
            blocks.append(piece(width))
            width = blocks[-1].out
        self.blocks = nn.ModuleList(blocks)
        self.flat, self.map = nn.Linear(width * 16, 3), nn.Conv2d(width, 2, 1)

    def forward(self, x, side):
        x = self.stem(x) + self.side(side)
        for block in self.blocks:
            x = block(x)
        return {"flat": self.flat(x.flatten(1)), "map": self.map(x)}


X = (torch.rand(2, 3, 4, 4, dtype=torch.float64), torch.rand(2, 1, 4, 4, dtype=torch.float64))


@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(st.lists(st.sampled_from(PIECES), min_size=1, max_size=5), st.integers(0, 10**6))
def test_random_networks_are_pruned_exactly(randomize, keep_sets, compare, counted, costed, pieces, seed):
    torch.manual_seed(seed)
    model = randomize(Network(pieces).double(), seed)
    graph = analyze(model, X)
    assert "stem" in graph.groups
    keep = keep_sets(graph, seed)
    count, worst = compare(model, graph, X, keep, depth=1)
    assert count >= 2
    assert worst <= 1e-12
    assert costed(graph, keep)[:2] == counted(prune(model, graph, keep), X)[:2]


@pytest.mark.parametrize("piece", PIECES)
def test_every_piece_can_lose_channels(piece, keep_sets, counted, costed):
    model = Network([piece]).double().eval()
    graph = analyze(model, X)
    assert any(name.startswith("blocks.0") for name in graph.prunable)
    # Bytes too, where no axis shrinks to one: torch copies nothing to reorder that.
    keep = keep_sets(graph, 0, 0.7)
    assert costed(graph, keep) == counted(prune(model, graph, keep), X)


def test_the_table_names_ops_that_exist():
    for name in RULES:
        namespace, _, op = name.rpartition("::")
        ops = getattr(torch.ops, namespace or "aten")
        assert hasattr(ops, op) or hasattr(ops, f"{op}_"), name
    assert set(RULES) >= ALWAYS


def test_an_op_without_a_rule_freezes_what_goes_in(check_op):
    check_op(lambda x: x.sort(1).values, reason="goes into sort, which has no rule for it")
    check_op(lambda x: torch.linalg.qr(x)[1], reason="which has no rule for it")


def test_an_op_used_as_its_rule_does_not_expect_freezes_what_goes_in(monkeypatch, check_op):
    def broken(*_):
        raise IndexError

    monkeypatch.setitem(RULES, "tanh", broken)
    check_op(lambda x: x.tanh(), reason="goes into tanh, which has no rule for it")


@pytest.mark.parametrize(
    ("op", "args", "numbers"),
    [
        ("mul", (torch.rand(3), 0.25), (0.25,)),
        ("add", (torch.rand(3), torch.tensor(2.0)), (2.0,)),
        ("div", (torch.rand(3), torch.rand(3)), ()),
        ("mul", (torch.tensor(2.0), 0.25), ()),  # no tensor with axes takes part
        ("masked_fill", (torch.rand(3), torch.rand(3) > 0.5, True), ()),
        ("cat", ([torch.rand(3)], 0), ()),
    ],
)
def test_scalars_of_elementwise_ops_are_recorded(op, args, numbers):
    assert numbers_of(op, args) == numbers
