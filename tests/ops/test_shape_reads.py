"""Lengths that a model's code reads from shapes: which reads count as guesses, and what the code gets."""

import copy
import pickle

import pytest
import torch
from torch import nn

from autoprune.graph import analyze
from autoprune.ops.labels import TraceConstraints
from autoprune.ops.shape_reads import ShapeReads


def guessed_lengths(read):
    """Lengths of the labeled axes that ``read`` reads from a tensor [5, 7, 1]; the last axis has no label."""
    constraints, tensor = TraceConstraints(), torch.rand(5, 7, 1)
    constraints.leaf(tensor)
    with ShapeReads(constraints):
        read(tensor)
    return sorted(len(axis) for axis in constraints.guesses)


@pytest.mark.parametrize(
    ("read", "lengths"),
    [
        (lambda x: x.shape[0], [5]),
        (lambda x: x.shape[-2], [7]),
        (lambda x: x.size(1), [7]),
        (lambda x: x.size(dim=0), [5]),
        (lambda x: x.size()[1], [7]),
        (lambda x: len(x), [5]),
        (lambda x: x.shape[:2], [5, 7]),
        (lambda x: tuple(x.shape), [5, 7]),
        (lambda x: x.numel(), [5, 7]),
        (lambda x: torch.numel(x), [5, 7]),
        (lambda x: x.shape.numel(), [5, 7]),
        # Neither the axis of length one, nor an object that nobody looks into, says anything of a width.
        (lambda x: x.shape[2], []),
        (lambda x: x.shape, []),
        (lambda x: x.dim(), []),
    ],
)
def test_a_read_of_a_length_is_a_guess_about_that_axis(read, lengths):
    assert guessed_lengths(read) == lengths


def test_ops_of_torch_read_lengths_without_a_guess():
    assert guessed_lengths(lambda x: x.flatten(1).sum(1) * 2) == []


def test_an_unlabeled_tensor_has_a_plain_shape():
    constraints, tensor = TraceConstraints(), torch.rand(5, 7)
    with ShapeReads(constraints):
        shape = tensor.shape
    assert type(shape) is torch.Size


def test_a_traced_size_equals_the_plain_one():
    constraints, tensor = TraceConstraints(), torch.rand(5, 7)
    constraints.leaf(tensor)
    with ShapeReads(constraints):
        shape = tensor.shape
    assert shape == torch.Size([5, 7])
    assert (shape[1], len(shape), shape.numel()) == (7, 2, 35)


class Stored(nn.Module):
    """Stores the shapes that its first convolution returns."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.shapes = nn.Conv2d(3, 12, 1), nn.Conv2d(12, 2, 1), []

    def forward(self, x):
        x = self.enter(x)
        self.shapes.append(x.shape)
        return self.leave(x)


def test_the_length_that_a_model_keeps_is_a_plain_size_once_copied():
    model = Stored().double()
    analyze(model, (torch.rand(2, 3, 8, 8, dtype=torch.float64),))
    for size in (copy.deepcopy(model.shapes[0]), pickle.loads(pickle.dumps(model.shapes[0]))):
        assert type(size) is torch.Size
        assert size == (2, 12, 8, 8)
