"""What rules get to see of the ops that torch dispatches."""

import pytest
import torch
from torch.nn import functional as F
from torchvision.ops import roi_align

from autoprune.ops.op_dispatch import OpDispatch, tensors_in
from autoprune.ops.rules import RULES

X = torch.rand(2, 4, 6, 6)


def dispatched(function):
    """Entries and arguments of the ops that ``function`` runs."""
    calls = []
    with torch.no_grad(), OpDispatch(lambda func, entry, args, kwargs, out: calls.append((entry, args, out))):
        function()
    return calls


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (lambda: X + 1, "add"),
        (lambda: X.clone().add_(1), "add"),
        (lambda: X.clone().relu_(), "relu"),
        (lambda: torch.cat([X, X]), "cat"),
        (lambda: roi_align(X, [torch.tensor([[0.0, 0, 4, 4]])] * 2, 2), "torchvision::roi_align"),
    ],
)
def test_an_op_is_known_by_its_name_without_overload_and_underscore(function, name):
    entry = dispatched(function)[-1][0]
    assert entry.name == name
    assert entry.rule is RULES[name]


@pytest.mark.parametrize(
    ("function", "aliases"),
    [(lambda: X.relu(), False), (lambda: X.view(2, -1), True), (lambda: X.clone().relu_(), True)],
)
def test_views_and_in_place_ops_take_no_memory(function, aliases):
    assert dispatched(function)[-1][0].aliases == aliases


def test_composite_ops_are_decomposed_and_give_the_same():
    results = []
    calls = dispatched(lambda: results.append(torch.einsum("nchw,kc->nkhw", X, torch.ones(3, 4))))
    names = [entry.name for entry, _, _ in calls]
    assert "einsum" not in names
    assert "bmm" in names
    assert not any(entry.composite for entry, _, _ in calls)
    torch.testing.assert_close(results[0], X.sum(1, keepdim=True).expand(-1, 3, -1, -1))


def test_tensors_given_by_name_reach_rules_in_the_order_of_the_schema():
    q, mask = torch.rand(1, 2, 5, 4), torch.rand(5, 5)
    calls = dispatched(lambda: F.scaled_dot_product_attention(q, q, q, mask))
    _, args, _ = next(call for call in calls if call[0].name == "_scaled_dot_product_flash_attention_for_cpu")
    schema = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default._schema
    by_name = dict(zip([argument.name for argument in schema.arguments], args, strict=True))
    assert schema.arguments[5].kwarg_only
    assert torch.equal(by_name["attn_mask"].expand(1, 2, 5, 5), mask.expand(1, 2, 5, 5))


def test_tensors_are_found_in_lists_of_arguments_in_order():
    a, b, c = torch.rand(3, 1).unbind()
    assert [id(x) for x in tensors_in((a, [b, None, (c,)], 3, "x"))] == [id(a), id(b), id(c)]
    assert tensors_in(()) == []
