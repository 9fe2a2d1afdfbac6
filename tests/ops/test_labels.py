"""Atoms and what is stated of them."""

import gc

import numpy as np
import pytest
import torch

from autoprune.ops.labels import TraceConstraints
from autoprune.tracing.trace import trace

from ..graph.conftest import Between


@pytest.fixture
def constraints():
    return TraceConstraints()


def test_every_index_of_a_leaf_has_an_atom_of_its_own(constraints):
    weight, bias = torch.rand(4, 3, 1, 1), torch.rand(4)
    axes = [*constraints.leaf(weight).axes, *constraints.leaf(bias).axes]
    assert axes[2] is axes[3] is None  # an axis of length one is fixed
    atoms = np.concatenate([axis for axis in axes if axis is not None])
    assert atoms.tolist() == list(range(4 + 3 + 4))
    assert constraints.size == len(atoms)
    assert constraints.axes(weight)[0] is axes[0]


def test_tensors_without_labels_are_fixed_and_not_zero(constraints):
    tensor = torch.rand(2, 3)
    constraints.put(tensor, [None, None], True)
    assert constraints.labels(tensor) is None
    assert constraints.axes(tensor) == (None, None)
    assert not constraints.zero(tensor)


def test_labels_of_another_trace_do_not_count(constraints):
    tensor, other = torch.rand(2), TraceConstraints()
    other.put(tensor, [other.fresh(2)])
    other.derive(tensor)
    assert constraints.labels(tensor) is None
    assert not constraints.derived(tensor)
    assert other.labels(tensor) is not None
    assert other.derived(tensor)


def test_a_view_shares_what_is_known_of_zeros(constraints):
    base, view = torch.rand(4), torch.rand(2, 2)
    atoms = constraints.fresh(4)
    constraints.put(base, [atoms], True)
    constraints.put(view, [atoms[:2], atoms[2:]], constraints.labels(base).zero)
    constraints.labels(view).zero[0] = False
    assert not constraints.zero(base)


def test_axes_that_meet_hold_the_same_channels(constraints):
    a, b = constraints.fresh(3), constraints.fresh(3)
    assert constraints.unify(a, a, "add") is a
    assert not constraints.same
    assert constraints.unify(a, b, "add") is a
    constraints.unify(a, b, "mul")  # stated before
    assert len(constraints.same) == 1
    assert not constraints.frozen


@pytest.mark.parametrize("labeled_first", [True, False])
def test_an_axis_that_meets_a_fixed_one_is_frozen(constraints, labeled_first):
    a = constraints.fresh(3)
    pair = (a, None) if labeled_first else (None, a)
    assert constraints.unify(*pair, "add") is a
    assert constraints.frozen == [(a, "meets an axis of fixed length in add")]


def test_only_the_first_reason_is_recorded(constraints):
    a = constraints.fresh(3)
    constraints.freeze(a, "first")
    constraints.freeze(a, "second")
    constraints.freeze(None, "no axis")
    assert [reason for _, reason in constraints.frozen] == ["first"]


def test_each_relation_counts_by_itself(constraints):
    a = constraints.fresh(3)
    for _ in range(2):
        constraints.produce(a)
        constraints.consume(a)
        constraints.normalize(a)
        constraints.guess(a)
    assert [len(x) for x in (constraints.produced, constraints.consumed)] == [1, 1]
    assert [len(x) for x in (constraints.normalized, constraints.guesses)] == [1, 1]


def test_arrays_are_kept_alive_so_that_no_id_is_used_twice(constraints):
    for _ in range(100):
        constraints.freeze(constraints.fresh(3), "each is an array of its own")
        gc.collect(0)
    assert len(constraints.frozen) == 100


def test_joined_columns_and_tied_rows(constraints):
    rows = constraints.fresh(6).reshape(2, 3)
    assert constraints.join(rows).tolist() == [0, 1, 2]
    assert [(a.tolist(), b.tolist()) for a, b in constraints.joined] == [([0, 1, 2], [3, 4, 5])]
    constraints.tie(rows)
    tied = [(a.tolist(), b.tolist()) for a, b in constraints.tied]
    assert tied == [([0, 3], [1, 4]), ([0, 3], [2, 5])]


def test_fixed_lengths_go_into_the_constant_of_a_cost(constraints):
    a, b = constraints.fresh(3), constraints.fresh(5)
    constraints.cost(2, (3, a), (7, None), (5, b))
    constraints.activation(4, (7, None))
    assert constraints.costs == [(2 * 7, (a, b))]
    assert constraints.activations == [(4 * 7, ())]


@pytest.mark.parametrize(
    ("function", "depends"),
    [
        (lambda x: x * 2, False),
        (lambda x: x * x.shape[1] ** -0.5, False),
        (lambda x: x[x > 0].sum() + x, True),
        (lambda x: x * float(x.max()), True),
        (lambda x: x * len(x.nonzero()), True),
    ],
)
def test_numbers_may_depend_on_values_where_these_are_read_or_picked_by(function, depends):
    assert trace(Between(function), (torch.rand(1, 3, 4, 4),)).constraints.by_values is depends
