"""Rules of changes of shape and order, held against the masked model and against torch's own views."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from autoprune.ops.components import connected
from autoprune.ops.labels import TraceConstraints
from autoprune.ops.rules import RULES


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x.permute(0, 2, 3, 1).permute(0, 3, 1, 2),
        lambda x: x.transpose(1, -1).transpose(-1, 1),
        lambda x: x.flatten(1).view(x.shape[0], -1, 6, 6),
        lambda x: x.flatten(2)[..., None],
        lambda x: x.reshape(-1, *x.shape[2:]).reshape(x.shape),
        lambda x: x[:, :, None].squeeze(2),
        lambda x: x.view(1, *x.shape)[0],
        lambda x: x[:, :, None].expand(-1, -1, 3, -1, -1).flatten(2, 3),
        lambda x: x.mean((2, 3), keepdim=True).expand_as(x),
        lambda x: x.repeat(1, 1, 2, 1),
        lambda x: x.movedim(1, -1).flatten(0, 2).T.unflatten(1, (x.shape[0], 6, 6)).transpose(0, 1),
    ],
)
def test_views_that_only_move_channels(check_op, function):
    assert check_op(function).groups["enter"].unit == 1


def shuffle(x, groups):
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


@pytest.mark.parametrize(
    ("function", "outputs", "width", "unit"),
    [
        (lambda x: x.repeat(1, 3, 1, 1), 36, 12, 1),
        (lambda x: F.pixel_unshuffle(x, 2), 48, 12, 1),
        (lambda x: F.pixel_shuffle(x, 2), 3, 3, 1),  # four channels are one
        (lambda x: F.channel_shuffle(x, 3), 12, 12, 3),
        (lambda x: shuffle(x, 3), 12, 4, 1),  # as a view, channels of equal place in their groups are one
        # The axis of one channel would be squeezed away.
        (lambda x: x.mean((2, 3), keepdim=True).squeeze()[..., None, None], 12, 12, 2),
        (lambda x: x.squeeze(1), 12, 12, 2),
        (lambda x: x.squeeze((1, 2)), 12, 12, 2),
    ],
)
def test_blocks_and_repeats_of_channels(check_op, function, outputs, width, unit):
    group = check_op(function, outputs).groups["enter"]
    assert (group.width, group.unit) == (width, unit)


def one_channel_shuffled(x):
    return F.pixel_shuffle(x.transpose(1, 2)[:, :4], 2).sum(2)[:, :, None]


def outer_product(x):
    return (x.flatten(2) @ x.flatten(2).transpose(1, 2)).flatten(1)[:, :, None, None]


@pytest.mark.parametrize(
    ("function", "outputs", "reason"),
    [
        (lambda x: x.flatten(2).view(x.shape[0], 12, -1, 2), 12, "fixed length"),
        (lambda x: x.view(-1, 12, 6, 6), 12, "fixed length"),  # a literal that leaves the shape as it is
        (lambda x: x.view(-1, 12, 36)[..., None], 12, "in the model's code"),
        (one_channel_shuffled, 1, "is shuffled as space"),
        (outer_product, 144, "is flattened with another axis of channels"),
    ],
)
def test_views_that_mix_channels_or_hold_their_number_freeze_them(check_op, function, outputs, reason):
    check_op(function, outputs, reason)


def labels_after(shape, op, function, *args):
    """Labels of ``function(tensor)`` by the rule of ``op``, with the joined channels as one."""
    constraints, tensor = TraceConstraints(), torch.rand(shape)
    axes = constraints.leaf(tensor).axes
    out = function(tensor)
    RULES[op](constraints, op, (tensor, *args), out)
    channel = connected(constraints.size, constraints.joined)
    return axes, [None if axis is None else channel[axis] for axis in constraints.axes(out)], constraints


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.permutations(range(4)))
def test_a_permutation_moves_labels_as_it_moves_axes(order):
    axes, after, _ = labels_after((2, 3, 4, 5), "permute", lambda x: x.permute(order), list(order))
    assert all(np.array_equal(after[d], axes[k]) for d, k in enumerate(order))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 4), st.integers(1, 4), st.integers(0, 2))
def test_flattened_and_unflattened_channels_come_back(c, h, w, place):
    # Only one axis holds channels: C x H x W flattened and unflattened is what it was.
    sizes = [h, w]
    sizes.insert(place, c + 1)
    constraints, tensor = TraceConstraints(), torch.rand(sizes)
    atoms = constraints.fresh(c + 1)
    constraints.put(tensor, [atoms if d == place else None for d in range(3)])
    flat = tensor.flatten()
    RULES["view"](constraints, "view", (tensor, [-1]), flat)
    # Every element of the flat tensor has the atom of its channel.
    elements = torch.arange(c + 1).view([-1 if d == place else 1 for d in range(3)]).expand(sizes).flatten()
    assert constraints.axes(flat)[0].tolist() == elements.tolist()
    again = flat.view(sizes)
    RULES["view"](constraints, "view", (flat, sizes), again)
    after = constraints.axes(again)
    assert np.array_equal(after[place], atoms)
    assert not constraints.joined
    assert all(axis is None for d, axis in enumerate(after) if d != place)


def test_a_tensor_without_elements_changes_shape_side_by_side():
    _, after, constraints = labels_after((0, 3, 4), "view", lambda x: x.view(0, 12), [0, 12])
    assert [reason for _, reason in constraints.frozen] == ["is flattened with another axis of channels"]
    assert after[1].tolist() == [3, 4, 5, 6] * 3
    _, after, constraints = labels_after((2, 0, 4), "view", lambda x: x.view(2, 0, 2, 2), [2, 0, 2, 2])
    assert not constraints.frozen
    assert after[0].tolist() == [0, 1]
    _, after, constraints = labels_after((2, 0, 4), "view", lambda x: x.view(0, 3), [0, 3])
    assert after == [None, None]
    assert all("give an example input that reaches all layers" in reason for _, reason in constraints.frozen)


def test_of_two_axes_flattened_into_one_the_longer_keeps_its_channels():
    axes, after, constraints = labels_after((2, 3, 4), "view", lambda x: x.view(6, 4), [6, 4])
    assert after[0].tolist() == axes[1].tolist() * 2
    assert [frozen is axes[0] for frozen, _ in constraints.frozen] == [True]


def test_of_two_axes_flattened_into_one_the_frozen_one_is_given_up():
    constraints, tensor = TraceConstraints(), torch.rand(2, 3)
    axes = constraints.leaf(tensor).axes
    constraints.freeze(axes[1], "is an output of the model")
    flat = tensor.flatten()
    RULES["view"](constraints, "view", (tensor, [-1]), flat)
    assert constraints.axes(flat)[0].tolist() == np.repeat(axes[0], 3).tolist()
    assert {id(frozen) for frozen, _ in constraints.frozen} == {id(axes[1])}


def test_very_long_labels_are_dropped():
    constraints, tensor = TraceConstraints(), torch.empty(1).expand(2, 1 << 20)
    constraints.put(tensor, [constraints.fresh(2), None])
    flat = torch.empty(1).expand(1 << 21)
    RULES["view"](constraints, "view", (tensor, [-1]), flat)
    assert constraints.labels(flat) is None
    assert [reason for _, reason in constraints.frozen] == ["is flattened"]
