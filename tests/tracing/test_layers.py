"""Which layers can be replaced, and which norm is folded into one."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from autoprune.tracing.layers import is_plain
from autoprune.tracing.trace import trace


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("module", "plain"),
    [
        (nn.Conv2d(2, 2, 1), True),
        (nn.ConvTranspose3d(2, 2, 1), True),
        (nn.Linear(2, 2), True),
        (nn.MultiheadAttention(2, 1).out_proj, True),
        (Scaled(2, 2, 1), False),
        (weight_norm(nn.Linear(2, 2)), False),
        (nn.utils.spectral_norm(nn.Linear(2, 2)), False),
        (nn.BatchNorm2d(2), False),
    ],
)
def test_a_plain_layer_computes_its_product_and_no_more(module, plain):
    assert is_plain(module) == plain


class Net(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.a, self.b, self.code = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), code
        self.norm, self.lines = nn.BatchNorm2d(4), nn.LayerNorm(4)
        self.prelu, self.one = nn.PReLU(4), nn.PReLU(1)

    def forward(self, x):
        return self.code(self, x)


@pytest.mark.parametrize(
    ("code", "norms"),
    [
        (lambda m, x: m.norm(m.a(x)), {"a": "norm"}),
        (lambda m, x: [m.norm(m.a(part)) for part in (x, x + 1)], {"a": "norm"}),
        (lambda m, x: m.prelu(m.a(x)), {"a": "prelu"}),
        (lambda m, x: m.one(m.a(x)), {}),  # not one parameter per channel
        (lambda m, x: m.norm(m.a(x).relu()), {}),
        (lambda m, x: m.norm(m.a(x).relu_()), {}),
        (lambda m, x: m.norm(y := m.a(x)) + y, {}),
        (lambda m, x: m.norm(m.a(x)) + m.norm(m.b(x)), {}),
        (lambda m, x: m.norm(m.a(x)) + m.a(x + 1), {}),
        (lambda m, x: m.lines(m.a(x).movedim(1, -1)), {}),
        (lambda m, x: m.norm(m.a(x).flip(3)), {}),
    ],
)
def test_a_norm_follows_where_it_alone_reads_the_layer(code, norms):
    model = Net(code)
    record = trace(model, (torch.rand(1, 3, 4, 4),)).layers
    assert {layer: norm.name for layer, norm in record.norms.items()} == norms
    assert set(record.layers) == {"a", "b"}
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
