"""Rules of elementwise ops and reductions, held against the masked model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.ops.rules_pointwise import NONZERO, ZERO_IF_ALL, ZERO_IF_ANY, ZERO_KEEPING

OPS = (
    *(
        "relu",
        "leaky_relu",
        "silu",
        "gelu",
        "mish",
        "hardswish",
        "elu",
        "celu",
        "selu",
        "tanh",
        "atan",
        "asin",
    ),
    *(
        "sinh",
        "erf",
        "sign",
        "abs",
        "neg",
        "sqrt",
        "square",
        "trunc",
        "floor",
        "ceil",
        "round",
        "expm1",
        "log1p",
    ),
    *("sin", "tan", "sigmoid", "hardsigmoid", "exp", "exp2", "cos", "softplus", "logical_not"),
)
UNARY = {name: getattr(F if hasattr(F, name) else torch, name) for name in OPS}


@pytest.mark.parametrize("name", UNARY)
def test_ops_on_single_values_keep_channels_apart(check_op, name):
    check_op(lambda x: UNARY[name](x.abs() / 100).to(x.dtype))


@pytest.mark.parametrize("name", UNARY)
def test_zeros_stay_zero_exactly_where_the_table_says(name):
    value = UNARY[name](torch.zeros(1, dtype=torch.float64)).item()
    assert (value == 0) == (name in ZERO_KEEPING)


def total(x):
    """Adds the sum over channels to each: exact only where removed channels hold zeros."""
    return x + x.sum(1, keepdim=True)


SUMMED = "is reduced by sum"


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: total(x.relu()), None),
        (lambda x: total(x.sigmoid()), SUMMED),
        (lambda x: total(x + 1), SUMMED),
        (lambda x: total(x - x.mean((2, 3), keepdim=True)), None),
        (lambda x: total(x * 3), None),
        (lambda x: total(x * x.sigmoid()), None),
        (lambda x: total(x + x.sigmoid()), SUMMED),
        (lambda x: total(x / 3), None),
        (lambda x: total(x**2), None),
        (lambda x: total(x.clamp(-1, 1)), None),
        (lambda x: total(x.clamp(min=0.1)), SUMMED),
        (lambda x: total(x.clamp(max=-0.1)), SUMMED),
        (lambda x: total(F.hardtanh(x)), None),
        (lambda x: total(F.hardtanh(x, 0.5, 1)), SUMMED),
        (lambda x: total(F.threshold(x, 0.1, 0)), None),
        (lambda x: total(F.threshold(x, 0.1, 7)), SUMMED),
        (lambda x: total(x.masked_fill(x > 0.5, 0)), None),
        (lambda x: total(x.masked_fill(x > 0.5, 1)), SUMMED),
        (lambda x: total(torch.where(x > 0, x, -x)), None),
        (lambda x: total(torch.where(x > 0, x, x.sigmoid())), SUMMED),
        (lambda x: total(x.nan_to_num()), None),
        (lambda x: total(x.nan_to_num(2.0)), SUMMED),  # zero is no NaN; the rule does not rely on that
        (lambda x: total(torch.lerp(x, x.tanh(), 0.3)), None),
        (lambda x: total(x.clone().fill_(0) + x), None),
    ],
)  # fmt: skip
def test_sums_are_exact_only_where_removed_channels_are_zero(check_op, function, reason):
    check_op(function, reason=reason)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x / x.abs().sum((2, 3), keepdim=True),
        lambda x: x.abs().log(),
        lambda x: x.abs().rsqrt(),
        lambda x: 1 / x,
    ],
)
def test_a_division_by_removed_channels_freezes_them(check_op, function):
    check_op(function, reason="is divided by in")


def test_in_place_ops_are_those_out_of_place(check_op):
    check_op(lambda x: total(x.clone().mul_(2).relu_()))
    check_op(lambda x: total(x.clone().add_(1)), reason=SUMMED)


class Broadcast(nn.Module):
    """Combines the input with a parameter of some shape."""

    def __init__(self, shape, combine):
        super().__init__()
        self.other, self.combine = nn.Parameter(torch.randn(shape)), combine

    def forward(self, x):
        return self.combine(x, self.other)


@pytest.mark.parametrize("shape", [(12, 1, 1), (1, 12, 1, 1), (2, 12, 6, 6), (12, 6, 6), (1, 1, 1), (6,), ()])
@pytest.mark.parametrize("combine", [torch.add, torch.mul, torch.maximum])
def test_broadcast_parameters_follow_the_channels_that_they_meet(check_op, shape, combine):
    graph = check_op(Broadcast(shape, combine))
    members = {tensor for tensor, _, _ in graph.groups["enter"].members}
    assert ("function.other" in members) == (12 in shape)


def test_a_constant_of_as_many_channels_freezes_them(check_op):
    constant = torch.rand(1, 12, 1, 1, dtype=torch.float64)
    check_op(lambda x: x * constant, reason="meets an axis of fixed length in mul")
    check_op(lambda x: x * constant[:, :1])  # one value for all channels


def test_a_value_that_is_repeated_as_often_as_a_literal_says_freezes_the_channels_that_it_meets(check_op):
    check_op(lambda x: x * x.sum(1, keepdim=True).expand(-1, 12, -1, -1), reason="fixed length")
    check_op(lambda x: x * x.sum(1, keepdim=True).expand_as(x))


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x * x.sum(1, keepdim=True), None),
        (lambda x: x * x.norm(dim=1, keepdim=True), None),
        (lambda x: x * torch.linalg.vector_norm(x, 3, dim=1, keepdim=True), None),
        (
            lambda x: x * torch.linalg.vector_norm(x, float("-inf"), dim=1, keepdim=True),
            "reduced by linalg_vector_norm",
        ),
        (lambda x: x * x.sum(), None),
        (lambda x: x * x.sum((1, 2), keepdim=True), None),
        (lambda x: x * x.mean(1, keepdim=True), "reduced by mean"),
        (lambda x: x * x.amax(1, keepdim=True), "reduced by amax"),
        (lambda x: x * x.max(1, keepdim=True).values, "reduced by max"),
        (lambda x: x * x.std(1, keepdim=True), "reduced by std"),
        (lambda x: x * x.logsumexp(1, keepdim=True), "reduced by"),
        (lambda x: x * x.mean((2, 3), keepdim=True), None),
        (lambda x: x * x.amax((2, 3), keepdim=True), None),
        (lambda x: x * x.std((2, 3), keepdim=True), None),
        (lambda x: x + x.argmax(2, keepdim=True), None),
    ],
)
def test_reductions(check_op, function, reason):
    check_op(function, reason=reason)


def test_the_sets_of_the_table_do_not_overlap():
    sets = [ZERO_IF_ALL, ZERO_IF_ANY, ZERO_KEEPING, set(NONZERO)]
    assert len(set().union(*sets)) == sum(map(len, sets))


class Convolved(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.conv, self.how = nn.Conv2d(12, 8, 1), how

    def forward(self, x):
        return self.how(self.conv(x.relu()))


@pytest.mark.parametrize(
    "how",
    [
        lambda x: x.sum(1, keepdim=True) + x,
        lambda x: F.normalize(x, dim=1),
        lambda x: x.flip(2).roll(1, 3).cumsum(2),
        lambda x: torch.einsum("nchw,ncuv->nhwuv", x, x).sum((3, 4))[:, None] * x,
        lambda x: x.view(x.size(0), -1, 6, 6),
    ],
)
def test_sums_over_channels_are_exact(how, check_op):
    graph = check_op(Convolved(how), 8, fractions=(0.5, 0.2))
    assert list(graph.prunable) == ["enter", "function.conv"]


def ignored_mean(x):
    x.mean(1)
    return x


def viewed_mean(x):
    x.mean(1).unsqueeze(1)
    return x


@pytest.mark.parametrize(("function", "reason"), [(ignored_mean, None), (viewed_mean, "is reduced by mean")])
def test_a_reduction_that_nothing_reads_costs_no_channels(check_op, function, reason):
    check_op(function, reason=reason)
