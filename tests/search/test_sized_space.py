"""Plans with several input sizes, on a chain whose costs at a size are a fraction of those at its own."""

import dataclasses
import itertools
from types import SimpleNamespace

import numpy as np
import pytest

from autoprune.cost.budget import Budget
from autoprune.errors import BudgetError
from autoprune.search.plan import SpacePlan
from autoprune.search.sized_space import SizedSpace
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.input_size import INPUT_SIZE
from autoprune.space.resolve import resolve

AREAS = {96: 0.5625, 64: 0.25}
REMOVED = {96: 2.0, 64: 9.0}


def scaled(graph, area):
    cost = graph.cost
    costs = SimpleNamespace(
        names=cost.names, dense=cost.dense, params=cost.params, flops=lambda widths: area * cost.flops(widths)
    )
    return SimpleNamespace(**{**vars(graph), "cost": costs})


@pytest.fixture
def make(chain, importance_of):
    def plan(*fractions, warm=False, max_ratio=0.8, mparams=None):
        graph = chain()
        file = SpaceFile(
            model="chain",
            input_size=(64, 64),
            round_to=4,
            groups=(GroupRule(match="body.*", max_ratio=max_ratio),),
        )
        scores = importance_of(graph)
        space = resolve(file, graph, scores)
        dense = float(space.cost("gflops", space.dense))
        others = (
            ()
            if mparams is None
            else (Budget("mparams", mparams * float(space.cost("mparams", space.dense))),)
        )
        bounds = tuple((Budget("gflops", fraction * dense), *others) for fraction in fractions) or (others,)
        smaller = [
            SizedSpace(dataclasses.replace(space, graph=scaled(graph, area)), bounds, size, REMOVED[size])
            for size, area in AREAS.items()
        ]
        criteria = {"taylor": scores} if warm else {}
        return SpacePlan(space, bounds, criteria, {}, "taylor", smaller, 128)

    return plan


def gflops(plan, widths):
    area = {128: 1.0, **AREAS}[widths[INPUT_SIZE]]
    return area * float(plan.space.cost("gflops", plan.space.as_array(widths)))


def test_the_last_variable_chooses_the_size_and_its_costs_meet_the_budget(make):
    plan = make(0.4)
    assert plan.variables[-1] == INPUT_SIZE
    random = np.random.default_rng(0)
    sizes = []
    for fraction in np.linspace(0, 1, 31):
        widths = plan.widths(np.append(random.random(4), fraction), 0)
        sizes.append(widths[INPUT_SIZE])
        if sizes[-1] == 64:  # the dense widths have a quarter of the GFLOPs there
            assert plan.space.as_array(widths).tolist() == plan.space.dense.tolist()
        else:
            assert 0.96 * plan.budgets[0] < gflops(plan, widths) <= plan.budgets[0]
    assert sizes == sorted(sizes, reverse=True)
    assert [sizes.count(size) for size in (128, 96, 64)] == [10, 10, 11]


def test_a_bound_that_no_size_lowers_still_holds(make):
    plan = make(0.4, mparams=0.5)
    for fraction in (0.0, 0.5, 1.0):
        widths = plan.widths(np.append(np.full(4, 0.3), fraction), 0)
        array = plan.space.as_array(widths)
        assert float(plan.space.cost("mparams", array)) <= plan.bounds[0][1].limit
        assert gflops(plan, widths) <= plan.budgets[0]


def test_a_size_out_of_reach_is_replaced_by_the_next_smaller_one(make):
    plan = make(0.3, max_ratio=0.3)  # the own size has half of the GFLOPs at least
    assert plan.widths(np.zeros(5), 0)[INPUT_SIZE] == 96
    assert {start.widths[INPUT_SIZE] for start in make(0.3, max_ratio=0.3, warm=True).warm_starts} == {96, 64}
    with pytest.raises(BudgetError, match="can't be reached, the smallest in this search space"):
        make(0.05, max_ratio=0.3)


@pytest.mark.parametrize("weight", [0.01, 1.0, 4.0])
def test_the_cheapest_policy_is_that_of_the_best_size(make, weight):
    plan = make(0.5)
    weights = np.array([1.0, 1.5, 0.5, 1.0, weight])
    got = plan.widths(plan.cheapest(weights, 0, 0.0), 0)

    def worth(widths):
        return float(weights @ plan.removed([widths])[0])

    rest = [plan.widths(np.append(f, s), 0) for s in (0.0, 0.5, 1.0) for f in _grid(4)]
    assert worth(got) <= min(map(worth, rest)) * 1.01
    removed = plan.removed([{**got, INPUT_SIZE: size} for size in (128, 96, 64)])
    assert removed[:, -1].tolist() == [0.0, 2.0, 9.0]
    assert (removed[:, :-1] == removed[0, :-1]).all()


def _grid(variables):
    return [np.array(point) for point in itertools.product(np.linspace(0, 1, 4), repeat=variables)]


def test_the_weight_of_the_size_decides_between_sizes(make):
    plan = make(0.5)
    chosen = [
        plan.widths(plan.cheapest(np.array([1, 1, 1, 1, weight]), 0, 0.0), 0)[INPUT_SIZE]
        for weight in (0.0, 0.5, 1e6)
    ]
    assert chosen[0] == 64  # the dense widths at no cost
    assert chosen[2] == 128
    assert chosen == sorted(chosen)


def test_warm_starts_at_smaller_sizes_are_few_and_begin_with_the_uniform_policy(make):
    plan = make(0.4, warm=True)
    starts = [(start.origin, start.widths[INPUT_SIZE]) for start in plan.warm_starts]
    assert starts[:3] == [("uniform", 128), ("uniform at 96 px", 96), ("dense at 64 px", 64)]
    assert [start for start in starts if start[1] != 128][2:] == [("greedy taylor at 96 px", 96)]
    for start in plan.warm_starts:
        assert gflops(plan, start.widths) <= plan.budgets[0]
        assert plan.widths(np.array(start.fractions), 0) == start.widths
    dense = plan.warm_starts[2].widths
    assert plan.space.as_array(dense).tolist() == plan.space.dense.tolist()
    several = make(0.6, 0.4, warm=True).warm_starts
    assert sum(start.widths[INPUT_SIZE] != 128 for start in several) == 4  # one for each size and budget


def test_without_a_budget_the_dense_detector_is_tried_at_each_smaller_size(make):
    plan = make(warm=True)
    smaller = [start for start in plan.warm_starts if start.widths[INPUT_SIZE] != 128]
    assert [start.origin for start in smaller] == ["dense at 96 px", "dense at 64 px"]
    for level in (0.0, 0.5, 1.0):
        widths = plan.widths(plan.cheapest(np.ones(5), 0, level), 0)
        assert widths[INPUT_SIZE] in (128, 96, 64)


def test_with_one_size_widths_name_none(make, chain, importance_of):
    plan = make(0.4)
    one = SpacePlan(plan.space, plan.bounds, {}, {}, "taylor", (), 128)
    assert one.variables == plan.variables[:-1]
    point = np.full(4, 0.3)
    assert one.widths(point, 0) == {
        name: width for name, width in plan.widths(np.append(point, 0), 0).items() if name != INPUT_SIZE
    }
