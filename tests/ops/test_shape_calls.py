"""Calls that give tensors a shape: what does not follow the labels is noted and corrected."""

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.ops.labels import ShapeCall
from autoprune.ops.shape_calls import FREE, CallKeys, CorrectedShapes, is_shaping

ATOMS = np.arange(8)
CHANNELS = ((None, 2), (ATOMS, 8))


class Code(nn.Module):
    def __init__(self, code):
        super().__init__()
        self.code = code

    def forward(self, x):
        return self.code(x)


def six(axis, n):
    """The length of an axis: six channels remain."""
    return n if axis is None else 6


def run(code, func, shape, outputs, length=six):
    """The result of ``code`` on ``shape`` where the dense call ``func`` returned ``outputs``."""
    model = Code(code)
    calls = {("model", func, 1): ShapeCall(func, (None, ATOMS), outputs)}
    with CorrectedShapes(calls, {id(model): "model"}, length) as corrected:
        out = model(torch.rand(shape))
    return model, out, corrected.misfits


@pytest.mark.parametrize(
    ("code", "func", "fails"),
    [
        (lambda x: x.view(2, 8), torch.Tensor.view, True),
        (lambda x: x.reshape(2, 8), torch.Tensor.reshape, True),
        (lambda x: torch.reshape(x, (2, 8)), torch.reshape, True),
        (lambda x: x[:, :1].expand(2, 8), torch.Tensor.expand, False),
    ],
)
def test_a_fixed_length_is_noted_and_mended(code, func, fails):
    model, out, (misfit,) = run(code, func, (2, 6), (CHANNELS,))
    assert out.shape == (2, 6)
    assert misfit.key == ("model", func, 1)
    assert (misfit.text or "").startswith("RuntimeError: ") == fails
    ((axis, length),) = misfit.changed
    assert axis is ATOMS
    assert length == 6
    assert misfit.modules == (model,)


def test_a_view_of_another_shape_is_mended_without_an_error():
    outputs = (((None, 2), (ATOMS, 8), (None, 4)),)
    _, out, (misfit,) = run(lambda x: x.view(2, -1, 8), torch.Tensor.view, (2, 24), outputs)
    assert misfit.text is None
    assert out.shape == (2, 6, 4)


@pytest.mark.parametrize("sizes", [4, (4, 4), [4, 4]])
def test_parts_of_a_split_shrink(sizes):
    half = ((None, 2), (ATOMS[:4], 4))
    code, three = lambda x: x.split(sizes, dim=1), lambda axis, n: n if axis is None else 3
    _, parts, (misfit,) = run(code, torch.Tensor.split, (2, 6), (half, half), three)
    assert [part.shape for part in parts] == [(2, 3), (2, 3)]
    assert len(misfit.changed) == 2


@pytest.mark.parametrize(
    ("shape", "length"),
    [
        ((2, 8), lambda axis, n: n),  # follows
        ((3, 8), lambda axis, n: n),  # an axis without channels may have any length
        ((2, 6), lambda axis, n: n if axis is None else FREE),  # nothing is known of it
    ],
)
def test_what_follows_is_left_alone(shape, length):
    _, out, misfits = run(lambda x: x.view(x.shape), torch.Tensor.view, shape, (CHANNELS,), length)
    assert out.shape == shape
    assert misfits == []


def test_a_call_that_keeps_its_channels_is_left_alone_whatever_it_returns():
    _, parts, misfits = run(
        lambda x: x.split(2, 0), torch.Tensor.split, (2, 8), (CHANNELS,) * 3, lambda _, n: n
    )
    assert [tuple(part.shape) for part in parts] == [(2, 8)]
    assert misfits == []


def test_what_can_not_be_mended_is_raised():
    with pytest.raises(RuntimeError):
        run(lambda x: x.view(2, 8), torch.Tensor.view, (2, 5), (CHANNELS,))


def test_calls_are_counted_by_module_and_function():
    class Counting(nn.Module):
        def forward(self, keys, func):
            return keys(func)

    one, other = Counting(), Counting()
    keys = CallKeys({id(one): "one", id(other): "other"})
    view, split = torch.Tensor.view, torch.Tensor.split
    assert [is_shaping(func) for func in (view, split, torch.Tensor.add)] == [True, True, False]
    calls = [(one, view), (other, view), (one, view), (one, split)]
    assert [module(keys, func) for module, func in calls] == [
        ("one", view, 1), ("other", view, 1), ("one", view, 2), ("one", split, 1),
    ]  # fmt: skip
    later = CallKeys({id(one): "one"}, [("one", view, 1), ("one", view, 2), ("other", view, 1)])
    assert one(later, view) == ("one", view, 3)
    assert one(later, split) == ("one", split, 1)
