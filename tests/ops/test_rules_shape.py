"""Rules of ops that create, join, split and index tensors, held against the masked model."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F


def zeros_written(x):
    y = torch.zeros(2, x.shape[1], 6, 6, dtype=x.dtype)
    y[:, :, 1:] = x[:, :, :-1]
    return y


def ones_added(x):
    return x + torch.ones(x.shape[0], x.shape[1], 1, 1, dtype=x.dtype)


def total(x):
    """Adds the sum over channels to each: exact only where removed channels hold zeros."""
    return x + x.sum(1, keepdim=True)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.clone().detach().contiguous(), None),
        (lambda x: x.float().double(), None),
        (zeros_written, None),
        (ones_added, None),
        (lambda x: x + torch.zeros(1, 12, 1, 1, dtype=x.dtype), "fixed length"),
        (lambda x: x + torch.full_like(x, 2.0), None),
        (lambda x: total(torch.zeros_like(x) + x), None),
        (lambda x: total(torch.full_like(x, 0.0) + x), None),
        (lambda x: total(torch.ones_like(x)) + x, "is reduced by sum"),
    ],
)
def test_new_tensors_and_copies(check_op, function, reason):
    check_op(function, reason=reason)


@pytest.mark.parametrize(
    ("function", "outputs", "reason"),
    [
        (lambda x: torch.cat([x, x.relu()], 1), 24, None),
        (lambda x: torch.cat([x, torch.ones(2, 3, 6, 6, dtype=x.dtype)], 1), 15, None),
        (lambda x: torch.cat([torch.ones(2, 3, 6, 6, dtype=x.dtype), x], -3), 15, None),
        (lambda x: torch.cat([x, x], 2), 12, None),
        (lambda x: torch.cat([x, torch.ones(2, 12, 6, 6, dtype=x.dtype)], 2), 12, "fixed length"),
        (lambda x: torch.cat([x, x[:, :, :0]], 2), 12, "fixed length"),  # careful: no elements, no labels
        (lambda x: torch.stack([x, x.relu()], 1).sum(1), 12, None),
        (lambda x: torch.stack([x, x.relu()], 2).flatten(1, 2), 24, None),
    ],
)
def test_joined_tensors(check_op, function, outputs, reason):
    check_op(function, outputs, reason)


@pytest.mark.parametrize(
    ("function", "outputs", "width", "unit"),
    [
        (lambda x: torch.cat(x.chunk(2, 1)[::-1], 1), 12, 12, 2),
        (lambda x: x[:, : x.shape[1] // 2], 6, 12, 2),
        (lambda x: x[:, -(x.shape[1] // 3) :], 4, 12, 3),
        # Added up or multiplied, channels of equal place in their parts are one.
        (lambda x: sum(x.chunk(3, 1)), 4, 4, 1),
        (lambda x: x.unflatten(1, (2, -1)).unbind(1)[1], 6, 6, 1),
        (lambda x: F.glu(x, 1), 6, 6, 1),
    ],
)
def test_equal_parts_of_channels_shrink_together(check_op, function, outputs, width, unit):
    group = check_op(function, outputs).groups["enter"]
    assert (group.width, group.unit) == (width, unit)


@pytest.mark.parametrize(
    ("function", "outputs", "reason"),
    [
        (lambda x: x.split([5, 7], 1)[1], 7, "is split into unequal parts"),
        (lambda x: x[:, 1:], 11, "is sliced"),
        (lambda x: x[:, ::2], 6, "is sliced"),
        (lambda x: x[:, :5], 5, "is sliced"),
        (lambda x: torch.cat(x.split(6, 1)[::-1], 1), 12, "length"),
        (lambda x: x[:, 3][:, None], 1, "is picked from by number"),
        (lambda x: torch.stack(x.unbind(1), 1), 12, "is picked from by number"),
        (lambda x: x[:, [3, 1]], 2, "is picked from by an index"),
        (lambda x: x[:, torch.arange(12) > 5], 6, "is picked from by an index"),
        (lambda x: x.flip(1), 12, "goes into flip along its axis"),
        (lambda x: x.roll(1, 1), 12, "goes into roll along its axis"),
        (lambda x: x.roll(1), 12, "goes into roll along its axis"),
        (lambda x: x.cumsum(1), 12, "goes into cumsum along its axis"),
        (lambda x: x.cumprod(1), 12, "goes into cumprod along its axis"),
        (lambda x: x.flatten(2).tril()[..., None], 12, "goes into tril along its axis"),
        (lambda x: x.transpose(1, 3).triu(1).transpose(1, 3), 12, "goes into triu along its axis"),
        (lambda x: F.pad(x, (0, 0, 0, 0, -1, 0)), 11, "is"),
    ],
)
def test_what_depends_on_single_channels_freezes_them(check_op, function, outputs, reason):
    check_op(function, outputs, reason)


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.cat(x.split(2, 2)[::-1], 2),
        lambda x: x[:, :, 1:, ::2],
        lambda x: x[:, :, 2][:, :, None],
        lambda x: torch.stack(x.unbind(3), 2),
        lambda x: x[..., [5, 0]],
        lambda x: x[:, :, [0, 1], [2, 3]][..., None],
        lambda x: x[[1, 0]],
        lambda x: x[torch.tensor([True, True])],
        lambda x: x.flip(2).roll(1, 3).cumsum(2),
        lambda x: x.tril(-1),
        lambda x: F.pad(x, (1, 0, 2, 3)),
        lambda x: F.pad(x, (-1, 0, 0, 0)),
    ],
)
def test_other_axes_may_be_taken_apart(check_op, function):
    check_op(function)


def test_indices_that_are_not_adjacent_move_their_axis_to_the_front(check_op):
    def apart(x):
        x = x[torch.tensor([0, 1]), :, torch.tensor([2, 3])]  # [2, channels, 6]
        return x[..., None]

    def between(x):
        x = x[:, :, None].expand(-1, -1, 3, -1, -1)  # [2, channels, 3, 6, 6]
        return x[torch.tensor([0, 1]), :, torch.tensor([2, 0])]

    def after_channels(x):
        x = x.transpose(0, 1)  # [channels, 2, 6, 6]
        x = x[:, torch.tensor([0, 1]), :, torch.tensor([2, 0])]  # [2, channels, 6]
        return x[..., None]

    check_op(apart)
    check_op(between)
    check_op(after_channels)


def test_a_mask_over_several_axes_is_one_index(check_op):
    inside = torch.ones(6, 6, dtype=torch.bool).triu()
    check_op(lambda x: x.movedim(1, -1)[:, inside].transpose(1, 2)[..., None])


def test_padding_channels_adds_constants(check_op):
    check_op(lambda x: F.pad(x, (0, 0, 0, 0, 2, 1)), 15)
    check_op(lambda x: total(F.pad(x, (0, 0, 0, 0, 2, 1))), 15)
    check_op(lambda x: total(F.pad(x, (1, 0), value=3.0)), reason="is reduced by sum")


class Scatter(nn.Module):
    """Writes what a layer makes of each sample into a fresh tensor, as the pooler of several levels does."""

    def __init__(self, values):
        super().__init__()
        self.values = values

    def forward(self, x):
        result = torch.zeros(2, 12, 6, 6, dtype=x.dtype) if self.values == "literal" else torch.zeros_like(x)
        for n in range(2):
            index = torch.tensor([n])
            result[index] = x[index] if self.values != "constant" else torch.ones(1, 12, 6, 6, dtype=x.dtype)
        return result if self.values != "constant" else result + x


def test_what_is_written_labels_a_fresh_tensor(check_op):
    check_op(Scatter("channels"))
    check_op(Scatter("literal"), reason="in the model's code")
    check_op(Scatter("constant"), reason="fixed length")


def rows(channels):
    """The index of two rows, the same for every channel."""
    return torch.tensor([3, 1]).view(1, 1, 2, 1).expand(2, channels, 2, 6)


def own_rows(channels):
    """An index that differs from channel to channel."""
    return torch.arange(channels).remainder(6).view(1, channels, 1, 1).expand(2, channels, 2, 6)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x.gather(2, rows(x.shape[1])), None),
        (lambda x: x.gather(-2, rows(1).repeat(1, x.shape[1], 1, 1)), None),
        (lambda x: total(x.gather(2, rows(x.shape[1]))), None),
        (lambda x: x.gather(2, rows(12)), "fixed length"),
        (lambda x: x.gather(2, own_rows(x.shape[1])), "of its own for each channel"),
        (lambda x: x.gather(1, own_rows(12).expand(2, 12, 2, 6)), "picked from by an index"),
    ],
)
def test_gathered_positions(check_op, function, reason):
    check_op(function, reason=reason)
