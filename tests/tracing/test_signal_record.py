"""Which ops read what the input reached: through views, writes in place and weights computed from others."""

import pytest
import torch
from torch import nn

from autoprune.tracing.signal_record import INPUT
from autoprune.tracing.trace import trace


class Run(nn.Module):
    """``code`` of a weight [4, 4], a parameter [2, 4] and the input [2, 4]."""

    def __init__(self, code):
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.rand(4, 4)), nn.Parameter(torch.rand(2, 4))
        self.code = code

    def forward(self, x):
        self.weight.abs(), self.other.abs()  # else the model would be run in training mode, to see them used
        return self.code(x, self.weight, self.other)


def record_of(code):
    return trace(Run(code), (torch.rand(2, 4),)).signal


def written_below(x, weight, other):
    whole = torch.zeros(2, 8)
    whole[:, :4] = x
    return whole[:, 4:] * 2


@pytest.mark.parametrize(
    ("code", "reached"),
    [
        (lambda x, weight, other: x @ weight, True),
        (lambda x, weight, other: other @ weight, False),
        (lambda x, weight, other: (other @ weight).add_(x), True),
        (lambda x, weight, other: other[x.argmax(1) % 2], True),
        (lambda x, weight, other: other[torch.tensor([0, 1])], False),
        (written_below, True),  # a tensor counts as a whole: more paths than there are, never fewer
    ],
)
def test_a_result_is_reached_where_an_op_read_the_input(code, reached):
    assert bool(record_of(code).ends) == reached


def test_views_have_the_writers_of_what_they_show():
    record = record_of(lambda x, weight, other: (x.t().t() * 2).relu_().view(-1)[:4])
    multiplied, rectified = record.ops
    assert [read.sources for read in multiplied.reads] == [(INPUT,)]
    assert [read.sources for read in rectified.reads] == [(0,)]
    assert [end.sources for end in record.ends] == [(0, 1)]


@pytest.mark.parametrize(
    ("code", "layers"),
    [
        (lambda x, weight, other: x @ weight, ["weight"]),
        (lambda x, weight, other: torch.nn.functional.linear(x, weight.tanh() * 2), ["weight"]),
        (lambda x, weight, other: weight @ x.t(), ["weight"]),
        (lambda x, weight, other: x @ x.t(), []),
        (lambda x, weight, other: x * other, []),
    ],
)
def test_layers_are_products_with_a_weight(code, layers):
    assert [op.layer for op in record_of(code).ops if op.layer] == layers


@pytest.mark.parametrize("left", [True, False])
def test_what_a_layer_makes_is_on_the_side_of_its_weight(left):
    def code(x, weight, other):
        return (weight.t() @ x.t()).t() if left else x @ weight

    model = Run(code)
    traced = trace(model, (torch.rand(2, 4),))
    (layer,) = [op for op in traced.signal.ops if op.layer]
    assert layer.made is traced.axes["weight", 1]


def test_inputs_keep_nothing():
    x = torch.rand(2, 4)
    trace(Run(lambda x, weight, other: x @ weight), (x,))
    assert not any("signal" in name for name in vars(x))
