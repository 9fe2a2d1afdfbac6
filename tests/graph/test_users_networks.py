"""Layers and code from published networks, in which a width is read, branched on or hidden."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torchvision.ops import DeformConv2d

from autoprune.graph import analyze

X = (torch.rand(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(3)),)


class Network(nn.Module):
    """Two convolutions with ``how`` between, which gets the 12 channels of the first."""

    def __init__(self, how, made=12):
        super().__init__()
        self.enter, self.middle, self.leave = nn.Conv2d(3, 12, 1), how, nn.Conv2d(made, 2, 1)

    def forward(self, x):
        return self.leave(self.middle(F.relu(self.enter(x))))


class Apply(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Deform(nn.Module):
    """Offsets and modulation from a convolution of their own."""

    def __init__(self, groups=1):
        super().__init__()
        self.offset, self.gate = nn.Conv2d(12, 18, 3, padding=1), nn.Conv2d(12, 9, 3, padding=1)
        self.conv = DeformConv2d(12, 12, 3, padding=1, groups=groups)

    def forward(self, x):
        return self.conv(x, self.offset(x), self.gate(x).sigmoid())


class BlurPool(nn.Module):
    """One fixed kernel, expanded to any number of channels."""

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]])[None, None] / 16)

    def forward(self, x):
        return F.conv2d(x, self.kernel.expand(x.shape[1], -1, -1, -1), padding=1, groups=x.shape[1])


class Standardized(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5), self.bias, padding=1)


class Attend(nn.Module):
    """CBAM: gates from the mean and the largest value, over space and over channels."""

    def __init__(self):
        super().__init__()
        self.squeeze, self.excite, self.space = (
            nn.Linear(12, 4),
            nn.Linear(4, 12),
            nn.Conv2d(2, 1, 3, padding=1),
        )

    def forward(self, x):
        pooled = (x.mean((2, 3)), x.amax((2, 3)))
        x = x * torch.sigmoid(sum(self.excite(F.relu(self.squeeze(p))) for p in pooled))[..., None, None]
        return x * torch.sigmoid(self.space(torch.stack([x.mean(1), x.amax(1)], 1)))


class Local(nn.Module):
    """ECA: a convolution along the channels."""

    def __init__(self):
        super().__init__()
        self.along = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x):
        gates = self.along(x.mean((2, 3))[:, None])[:, 0]
        return x * torch.sigmoid(gates)[..., None, None]


class Fusion(nn.Module):
    """BiFPN: a normalized weight for each input."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(12, 12, 3, padding=1), nn.Conv2d(12, 12, 1)
        self.weights = nn.Parameter(torch.rand(2))

    def forward(self, x):
        w = F.relu(self.weights)
        w = w / (w.sum() + 1e-4)
        return F.silu(w[0] * self.a(x) + w[1] * self.b(x))


def focus(x):
    return F.interpolate(
        torch.cat([x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]], 1),
        scale_factor=2,
    )


def in_place(x):
    y = torch.zeros_like(x)
    y[:, :, 1:] = x[:, :, :-1]
    y[:, :, :1] += x[:, :, -1:]
    return y


EXACT = {
    "deformable": (Deform, 12), "deformable, grouped": (lambda: Deform(3), 12), "blur": (BlurPool, 12),
    "standardized": (lambda: Standardized(12, 12, 3), 12), "CBAM": (Attend, 12), "ECA": (Local, 12),
    "BiFPN": (Fusion, 12), "focus": (lambda: Apply(focus), 48), "in place": (lambda: Apply(in_place), 12),
    "deconvolution, depthwise": (lambda: nn.ConvTranspose2d(12, 12, 4, 2, 1, groups=12), 12),
    "channel_shuffle": (lambda: nn.ChannelShuffle(3), 12),
    "grouped norm": (lambda: Apply(lambda x: F.group_norm(x, 4)), 12),
    "mean by hand": (lambda: Apply(lambda x: x - x.sum(1, keepdim=True) / x.shape[1]), 12),
    "scaled by width": (lambda: Apply(lambda x: x * x.shape[1]), 12),
    "scaled by a number of elements": (lambda: Apply(lambda x: x / x[0, :, 0, 0].numel()), 12),
    "added width": (lambda: Apply(lambda x: x + 0.1 * x.size(1)), 12),
    "branch": (lambda: Apply(lambda x: x.tanh() if x.shape[1] > 11 else x.sigmoid()), 12),
    "normalized over channels": (lambda: Apply(lambda x: F.normalize(x, dim=1)), 12),
    "flipped": (lambda: Apply(lambda x: x.flip(1) + x), 12),
    "einsum": (lambda: Apply(lambda x: torch.einsum("nchw,nchw->nhw", x, x)[:, None] * x), 12),
    "literal groups": (lambda: Apply(lambda x: F.conv2d(x, torch.ones(12, 1, 1, 1).double(), groups=12)),
                       12),
}  # fmt: skip


@pytest.mark.parametrize("name", EXACT)
@pytest.mark.parametrize("fraction", [0.5, 0])
def test_what_is_pruned_is_exact(name, fraction, randomize, keep_sets, compare):
    torch.manual_seed(0)
    make, made = EXACT[name]
    model = randomize(Network(make(), made).double())
    graph = analyze(model, X)
    assert "enter" in graph.groups
    count, worst = compare(model, graph, X, keep_sets(graph, 5, fraction), depth=1)
    assert count >= 1
    assert worst <= 1e-12


@pytest.mark.parametrize(
    "name", ["deformable", "blur", "BiFPN", "focus", "channel_shuffle", "deconvolution, depthwise"]
)
def test_what_could_be_pruned_is(name):
    make, made = EXACT[name]
    assert "enter" in analyze(Network(make(), made).double(), X).prunable


@pytest.mark.parametrize(
    ("name", "message"),
    [("scaled by width", "a number in the model's code"), ("branch", "decides in the model's code"),
     ("ECA", ""), ("flipped", "flip"), ("mean by hand", "a number in the model's code")],
)  # fmt: skip
def test_what_depends_on_the_width_is_frozen_with_a_reason(name, message):
    make, made = EXACT[name]
    group = analyze(Network(make(), made).double(), X).groups["enter"]
    assert not group.prunable
    assert message in group.reason


class Text(nn.Module):
    def __init__(self):
        super().__init__()
        self.features, self.read, self.out = nn.Linear(3, 8), nn.LSTM(8, 6, batch_first=True), nn.Linear(6, 2)

    def forward(self, x):
        return self.out(self.read(F.relu(self.features(x)))[0])


def test_a_recurrent_layer_reads_fewer_features(randomize, keep_sets, compare):
    inputs = (torch.rand(2, 5, 3, dtype=torch.float64),)
    model = randomize(Text().double())
    graph = analyze(model, inputs)
    count, worst = compare(model, graph, inputs, keep_sets(graph, 1, 0.5), depth=1)
    assert count >= 1
    assert worst <= 1e-12
