"""Scores made of sensitivity curves add up to the curves, in the order that they were measured in."""

from types import SimpleNamespace

import numpy as np
import pytest

from autoprune.graph import ChannelGroup
from autoprune.importance.curves import Curve, curve_scores, ratios_to_widths
from autoprune.importance.reduce import most_important, per_unit


@pytest.fixture
def graph():
    """Two groups; the second loses units of four channels."""
    groups = {
        name: ChannelGroup(name, width, unit, True, None, [], [], np.arange(width).reshape(-1, unit))
        for name, width, unit in (("a", 16, 1), ("b", 24, 4))
    }
    return SimpleNamespace(groups=groups, prunable=groups)


def cumulative(scores, group):
    return np.concatenate([[0.0], np.cumsum(np.sort(per_unit(scores, group)))])


def test_a_convex_curve_is_what_the_least_important_channels_add_up_to(graph):
    random = np.random.default_rng(0)
    order = {name: random.random(group.width) for name, group in graph.prunable.items()}
    curves = {"a": Curve((12, 8, 4), (0.1, 0.3, 1.0)), "b": Curve((16, 8), (0.2, 0.9))}
    scores = curve_scores(curves, order, graph)
    a = cumulative(scores["a"], graph.groups["a"])
    assert a[[0, 4, 8, 12, 16]] == pytest.approx([0, 0.1, 0.3, 1.0, 1.7], abs=1e-4)
    assert a[2] == pytest.approx(0.05, abs=1e-4)  # linear between
    b = cumulative(scores["b"], graph.groups["b"])
    assert b[[2, 4, 6]] == pytest.approx([0.2, 0.9, 1.6], abs=1e-4)
    for name, group in graph.prunable.items():
        before, after = (np.argsort(per_unit(each[name], group)) for each in (order, scores))
        assert before.tolist() == after.tolist()


def test_a_noisy_curve_becomes_the_greatest_convex_one_below_its_rising_envelope(graph):
    order = {name: np.arange(group.width, dtype=float) for name, group in graph.prunable.items()}
    points = (0.5, -0.2, 0.3, 2.0)
    curves = {"a": Curve((12, 8, 4, 1), points), "b": Curve((20,), (-0.1,))}
    scores = curve_scores(curves, order, graph)
    a = cumulative(scores["a"], graph.groups["a"])
    removed, rises = np.array([0, 4, 8, 12, 15]), np.maximum.accumulate([0.0, *points])
    assert (np.interp(np.arange(16), removed, rises) >= a[:16] - 1e-4).all()
    assert (np.diff(a, 2) >= -1e-4).all()
    assert a[12] == pytest.approx(0.5, abs=1e-4)
    assert a[15] == pytest.approx(2.0, abs=1e-4)
    assert (scores["b"] >= 0).all()
    assert np.isfinite(scores["b"]).all()


def test_widths_of_ratios_are_whole_units_and_never_none_or_all(graph):
    assert ratios_to_widths(graph.groups["a"], (0.25, 0.5, 0.99)) == (12, 8, 1)
    assert ratios_to_widths(graph.groups["b"], (0.01, 0.5, 0.55, 0.9)) == (12, 4)


def test_scores_that_differ_in_their_last_digits_keep_their_order(graph):
    """A search ranks channels by curves, its workers and recoveries by the criterion: all keep the same."""
    random = np.random.default_rng(0)
    curves = {"a": Curve((8,), (1.0,)), "b": Curve((8,), (1e6,))}
    for scale in (1.0, 1e-12, 1e12):
        order = {}
        for name, group in graph.prunable.items():
            close = scale * (1 + 1e-13 * random.permutation(group.width))
            order[name] = np.where(np.arange(group.width) < 4, 1e9 * scale, close)
        scores = curve_scores(curves, order, graph)
        for name, group in graph.prunable.items():
            for width in range(group.unit, group.width, group.unit):
                kept = most_important(order[name], group, width)
                assert most_important(scores[name], group, width) == kept
