import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.study.pareto import crowding, front, order, ranks

DIRECTIONS = ("maximize", "minimize", "minimize")
# Few distinct values, so that ties are common.
points_of_three = st.lists(st.tuples(*[st.integers(0, 4)] * 3), min_size=1, max_size=20)


def dominates(a, b):
    """The definition, in so many words: no worse in all, better in one (map up, costs down)."""
    no_worse = a[0] >= b[0] and a[1] <= b[1] and a[2] <= b[2]
    return no_worse and (a[0] > b[0] or a[1] < b[1] or a[2] < b[2])


@given(points_of_three)
def test_front_is_what_brute_force_finds(points):
    expected = [i for i, a in enumerate(points) if not any(dominates(b, a) for b in points)]
    assert front(points, DIRECTIONS) == expected


@given(points_of_three)
def test_ranks_peel_fronts(points):
    ranked = ranks(points, DIRECTIONS)
    left = dict(enumerate(points))
    rank = 0
    while left:
        here = [i for i, a in left.items() if not any(dominates(b, a) for b in left.values())]
        assert all(ranked[i] == rank for i in here)
        left = {i: a for i, a in left.items() if i not in here}
        rank += 1


def test_crowding_is_the_gap_between_neighbors():
    # On the line y = x of length 10: inner points get (gap in x)/10 + (gap in y)/10.
    points = [(0, 0), (10, 10), (2, 2), (5, 5)]
    assert crowding(points, ("maximize", "minimize")).tolist() == [math.inf, math.inf, 1.0, 1.6]


def test_crowding_ignores_an_objective_without_spread():
    assert crowding([(1, 7), (3, 7), (2, 7)], ("maximize", "minimize"))[2] == 1.0
    assert crowding([(1, 7), (1, 7)], ("maximize", "minimize")).tolist() == [0, 0]


@given(points_of_three)
def test_order_never_puts_a_point_before_one_that_dominates_it(points):
    place = {int(index): at for at, index in enumerate(order(points, DIRECTIONS))}
    assert sorted(place) == list(range(len(points)))
    for i, a in enumerate(points):
        for j, b in enumerate(points):
            assert not dominates(a, b) or place[i] < place[j]


def test_one_objective_is_plain_sorting():
    values = np.random.default_rng(0).permutation(9).astype(float)
    assert order(values[:, None], ("maximize",)).tolist() == np.argsort(-values).tolist()


def test_no_points():
    assert front([], ("maximize", "minimize")) == []
    assert order([], ("maximize",)).tolist() == []


def test_wrong_number_of_objectives_and_nan_are_refused():
    with pytest.raises(ValueError, match="do not have 2 objectives"):
        front([(1, 2, 3)], ("maximize", "minimize"))
    with pytest.raises(ValueError, match="NaN"):
        front([(math.nan, 2)], ("maximize", "minimize"))
