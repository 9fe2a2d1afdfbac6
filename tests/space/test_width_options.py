"""The levels of a variable are all widths that it can set, with the importance that each removes."""

import numpy as np
import pytest

from autoprune.space.file import GroupRule
from autoprune.space.resolve import resolve
from autoprune.space.width_options import (
    fractions_at,
    make_width_options,
    removed_at,
    removed_by,
    widths_at,
)


def test_a_variable_of_one_group_has_every_width_with_the_fraction_that_sets_it(
    chain, make_space, importance_of
):
    graph = chain(dense=(64, 100), units=(1, 4))
    space = make_space(graph, max_ratio=0.6)
    options = make_width_options(space, importance_of(graph))
    assert [option.widths[:, 0].tolist() for option in options] == [
        [64, 56, 48, 40, 32],  # 26 channels at least, in steps of 8
        [100, 96, 88, 80, 72, 64, 56, 48, 40],
    ]
    for place, option in enumerate(options):
        fractions = np.zeros((len(option.fractions), 2))
        fractions[:, place] = option.fractions
        assert space.widths(fractions)[:, place].tolist() == option.widths[:, 0].tolist()
        assert (np.diff(option.fractions) > 0).all()


def test_groups_of_one_variable_fall_together(chain, make_space, importance_of):
    graph = chain(dense=(64, 96, 128), names=("stage1.a", "stage1.b", "stage2.a"))
    file_rules = (GroupRule(match="stage*", max_ratio=0.5),)
    space = make_space(graph, groups=file_rules, granularity="stage")
    first, second = make_width_options(space, importance_of(graph))
    assert (first.places.tolist(), second.places.tolist()) == ([0, 1], [2])
    assert first.widths[0].tolist() == [64, 96]
    assert first.widths[-1].tolist() == [32, 48]
    assert (np.diff(first.widths, axis=0) <= 0).all()
    assert len(np.unique(first.widths, axis=0)) == len(first.widths)
    for fraction, widths in zip(first.fractions, first.widths, strict=True):
        assert space.widths(np.array([fraction, 0.0]))[:2].tolist() == widths.tolist()


def test_each_level_removes_the_least_important_units(chain, make_space, importance_of, removed_from):
    graph = chain(dense=(64, 48, 96), units=(1, 4, 8))
    space, importance = make_space(graph), importance_of(graph)
    options = make_width_options(space, importance)
    for option, name in zip(options, space.names, strict=True):
        units = np.sort(importance[name].reshape(-1, graph.groups[name].unit).sum(1))
        for width, removed in zip(option.widths[:, 0], option.removed, strict=True):
            removed_units = (graph.groups[name].width - width) // graph.groups[name].unit
            assert removed == pytest.approx(units[:removed_units].sum())


def test_levels_become_widths_and_fractions_and_their_importance_adds_up(
    chain, make_space, importance_of, removed_from
):
    graph = chain()
    space, importance = make_space(graph), importance_of(graph)
    options = make_width_options(space, importance)
    random = np.random.default_rng(0)
    levels = np.stack([random.integers(0, len(option.fractions), 5) for option in options], axis=1)
    for row, widths in zip(levels, widths_at(space, options, levels), strict=True):
        assert space.widths(fractions_at(options, row)).tolist() == widths.tolist()
        expected = removed_from(space, importance, widths)
        assert removed_at(options, row) == pytest.approx(expected)
        assert removed_by(space, importance, widths) == pytest.approx(expected)
        assert sum(option.removed_by(widths) for option in options) == pytest.approx(expected)


def test_between_levels_the_importance_is_interpolated_over_the_total_width(chain, space_file, importance_of):
    graph = chain(dense=(64, 64))
    rules = (GroupRule(match="body.*", max_ratio=0.5, tie="both"),)
    space = resolve(space_file(*rules), graph)
    (option,) = make_width_options(space, importance_of(graph))
    assert option.widths[1].tolist() == [56, 56]
    half_way = option.removed_by(np.array([64, 56]))
    assert half_way == pytest.approx(option.removed[1] / 2)
