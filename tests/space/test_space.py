"""Suggestions become widths within every budget, and widths become kept channels."""

import itertools
from math import lcm

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from autoprune.cost.budget import Budget
from autoprune.errors import BudgetError, ConfigError
from autoprune.space.file import GroupRule
from autoprune.space.render import removed_importance
from autoprune.space.resolve import resolve
from autoprune.space.space import Space


@given(
    dense=st.lists(st.sampled_from([16, 20, 24, 36, 64, 96, 256]), min_size=1, max_size=5),
    unit=st.sampled_from([1, 2, 4]),
    round_to=st.sampled_from([1, 8, 16]),
    min_width=st.integers(1, 40),
    max_ratio=st.floats(0.05, 0.95),
    seed=st.integers(0, 1000),
)
@settings(max_examples=100, deadline=None)
def test_widths_respect_every_rule(
    chain, dense, unit, round_to, min_width, max_ratio, seed, space_file
) -> None:
    graph = chain(dense=dense, units=[unit] * len(dense))
    file = space_file(GroupRule(match="body.*", max_ratio=max_ratio), round_to=round_to, min_width=min_width)
    steps = [lcm(unit, round_to) if lcm(unit, round_to) <= whole else unit for whole in dense]
    if not any(
        width >= max(min_width, whole * (1 - max_ratio))
        for whole, step in zip(dense, steps, strict=True)
        for width in range(step, whole, step)
    ):
        with pytest.raises(ConfigError, match="nothing to prune"):
            resolve(file, graph)
        return
    space = resolve(file, graph)
    fractions = np.random.default_rng(seed).random((4, len(space.variables)))
    fractions[0], fractions[1] = 0, 1
    for row, fraction in zip(space.widths(fractions), fractions, strict=True):
        assert row.tolist() == space.widths(fraction).tolist()
        for width, whole, step in zip(row.tolist(), dense, steps, strict=True):
            assert width == whole or width % step == 0
            assert width % unit == 0
            assert whole >= width >= min(min_width, whole)
            assert width >= whole * (1 - max_ratio) - 1e-6
    assert space.widths(fractions[0]).tolist() == dense


def test_a_fraction_is_rounded_to_the_nearest_step(chain, space_file) -> None:
    space = resolve(space_file(), chain())
    # dense * (1 - 0.3 * 0.75) = 49.6, 49.6, 99.2, 198.4
    assert space.widths(np.full(4, 0.3)).tolist() == [48, 48, 96, 200]


def test_fractions_of_widths_give_the_widths_back(chain, space_file) -> None:
    space = resolve(space_file(), chain())
    for widths in itertools.product((16, 40, 64), (24, 64), (32, 128), (64, 72, 248, 256)):
        assert space.widths(space.fractions(np.array(widths))).tolist() == list(widths)


def groups_with_room(space: Space, widths: np.ndarray, budgets: list[Budget]) -> list[int]:
    """Groups that could be widened by a step within the budgets."""
    groups = []
    for place in range(len(widths)):
        more = widths.copy()
        more[place] = min(more[place] + space.step[place], space.dense[place])
        if more[place] > widths[place] and all(space.cost(b.metric, more) <= b.limit for b in budgets):
            groups.append(place)
    return groups


@given(
    fractions=st.lists(st.floats(0, 1), min_size=4, max_size=4),
    gflops=st.floats(0.15, 0.95),
    mparams=st.floats(0.15, 0.95) | st.none(),
)
@settings(max_examples=100, deadline=None)
def test_every_suggestion_is_projected_onto_the_budgets(
    chain, fractions, gflops, mparams, space_file
) -> None:
    graph = chain()
    space = resolve(space_file(), graph)
    budgets = [Budget("gflops", gflops * float(space.cost("gflops", space.dense)))]
    if mparams is not None:
        budgets.append(Budget("mparams", mparams * float(space.cost("mparams", space.dense))))
    widths = space.project_to_budget(np.array(fractions), budgets)
    assert all(space.cost(budget.metric, widths) <= budget.limit for budget in budgets)
    assert (widths >= space.lowest).all()
    assert (widths <= space.dense).all()
    assert (widths % 8 == 0).all()
    assert groups_with_room(space, widths, budgets) == []
    assert space.project_to_budget(space.fractions(widths), budgets).tolist() == widths.tolist()


def test_the_projected_ratios_keep_the_order_of_the_fractions(chain, space_file) -> None:
    graph = chain(dense=(256,) * 4)
    space = resolve(space_file(), graph)
    budget = Budget("gflops", 0.4 * float(space.cost("gflops", space.dense)))
    for fractions in itertools.permutations((0.2, 0.4, 0.7, 0.95)):
        widths = space.project_to_budget(np.array(fractions), [budget])
        assert np.argsort(widths).tolist() == np.argsort(-np.array(fractions)).tolist()


def test_a_budget_out_of_reach_says_what_is_reachable(chain, space_file) -> None:
    space = resolve(space_file(), chain())
    least = float(space.cost("gflops", np.array([16, 16, 32, 64])))
    with pytest.raises(
        BudgetError, match=rf"budget_gflops: 0.1 GFLOPs can't be reached.* is {least:.4g} GFLOPs"
    ):
        space.project_to_budget(np.zeros(4), [Budget("gflops", 0.1)])
    with pytest.raises(BudgetError, match="above the dense detector"):
        space.project_to_budget(np.zeros(4), [Budget("mparams", 1000.0)])


def test_a_budget_on_latency_without_a_model_does_not_bound(chain, space_file) -> None:
    space = resolve(space_file(), chain())
    assert space.project_to_budget(np.zeros(4), [Budget("latency_ms", 1e-3)]).tolist() == space.dense.tolist()


NETWORK = [f"body.layer{i // 3}.{i % 3}.conv{j}" for i in range(6) for j in (1, 2)]


@given(
    fractions=st.lists(st.floats(0, 1), min_size=12, max_size=12),
    gflops=st.floats(0.2, 0.99),
    mparams=st.none() | st.floats(0.2, 0.99),
    granularity=st.sampled_from(["layer", "block", "stage"]),
    tied=st.booleans(),
    unit=st.sampled_from([1, 4]),
)
@settings(max_examples=150, deadline=None)
def test_every_suggestion_ends_within_two_percent_below_its_budget(
    chain, fractions, gflops, mparams, granularity, tied, unit, space_file
) -> None:
    dense = (64, 96, 128, 100, 256, 36, 64, 64, 72, 128, 256, 256)
    graph = chain(dense=dense, names=NETWORK, units=[unit] * 12)
    rules = [GroupRule(match="body.*", max_ratio=0.9)]
    if tied:
        rules.append(GroupRule(match="body.layer1.*.conv1", max_ratio=0.5, tie="narrow"))
    space = resolve(space_file(*rules, granularity=granularity, round_to=4), graph)
    budgets = [Budget("gflops", gflops * float(graph.cost.flops(space.dense)) / 1e9)]
    if mparams is not None:
        budgets.append(Budget("mparams", mparams * float(graph.cost.params(space.dense)) / 1e6))
    assume(space.budget_usage(space.lowest, budgets) <= 1)
    widths = space.project_to_budget(np.array(fractions[: len(space.variables)]), budgets)
    used = [float(graph.cost.flops(widths)) / 1e9 / budgets[0].limit]
    if mparams is not None:
        used.append(float(graph.cost.params(widths)) / 1e6 / budgets[1].limit)
    assert 0.98 <= max(used) <= 1
    assert all(width == whole or width % 4 == 0 for width, whole in zip(widths, dense, strict=True))
    assert (widths >= space.lowest).all()


def test_a_projection_asks_the_cost_model_for_little(chain, space_file, count_costs) -> None:
    graph = chain(dense=(256,) * 80)
    space = resolve(space_file(), graph)
    budget = Budget("gflops", 0.4 * float(space.cost("gflops", space.dense)))
    count, random = count_costs(graph), np.random.default_rng(0)
    for _ in range(20):
        widths = space.project_to_budget(random.random(80), [budget])
        assert space.cost("gflops", widths) > 0.99 * budget.limit
    assert count.calls < 20 * 50
    assert count.rows < 20 * 1000


def test_the_most_important_units_stay(chain, space_file) -> None:
    graph = chain(dense=(16, 8, 16), units=(1, 4, 2))
    scores = np.array([9.0, 1, 1, 1, 4, 4, 3, 3])  # units: 12 and 14
    importance = {
        "body.layer0.conv": np.arange(16.0)[::-1],
        "body.layer1.conv": scores,
        "body.layer2.conv": np.ones(16),
    }
    space = resolve(space_file(round_to=1, min_width=1), graph, importance)
    assert space.keep(np.array([5, 4, 16])) == {
        "body.layer0.conv": (0, 1, 2, 3, 4),
        "body.layer1.conv": (4, 5, 6, 7),
    }
    assert space.keep(np.array([16, 8, 6])) == {"body.layer2.conv": (0, 1, 2, 3, 4, 5)}
    assert removed_importance(graph.groups["body.layer1.conv"], 4, scores) == pytest.approx(12 / 26)


def test_kept_channels_nest_as_the_width_falls(chain, importance_of, space_file) -> None:
    graph = chain()
    space = resolve(space_file(), graph, importance_of(graph))
    wide, narrow = space.keep(np.array([32, 32, 64, 128])), space.keep(np.array([24, 16, 40, 64]))
    assert all(set(narrow[name]) < set(wide[name]) for name in wide)


def test_keeping_needs_importance(chain, space_file) -> None:
    with pytest.raises(ValueError, match="importance"):
        resolve(space_file(), chain()).keep(np.array([16, 16, 32, 64]))
