import itertools

import numpy as np
import pytest

from autoprune.config import make_config
from autoprune.cost.budget import Budget
from autoprune.errors import BudgetError
from autoprune.search.plan import SpacePlan, identify, read_bounds
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.resolve import resolve


@pytest.fixture
def graph(chain):
    graph = chain()
    graph.gflops = lambda widths=None: float(graph.cost.flops(graph.cost.dense)) / 1e9
    graph.mparams = lambda widths=None: float(graph.cost.params(graph.cost.dense)) / 1e6
    return graph


@pytest.fixture
def file():
    return SpaceFile(
        model="chain", input_size=(64, 64), round_to=4, groups=(GroupRule(match="body.*", max_ratio=0.8),)
    )


def make(graph, file, importance, warm=True, **settings):
    bounds = read_bounds(make_config(**settings), graph)
    space = resolve(file, graph, importance)
    return SpacePlan(space, bounds, {"taylor": importance} if warm else {}, {})


def flops(graph, widths):
    return float(graph.cost.flops(np.array([widths[name] for name in graph.cost.names]))) / 1e9


def test_a_search_that_ends_with_its_warm_starts_is_told_so(graph, file, importance_of):
    plan = make(graph, file, importance_of(graph), budget_gflops="60%")
    count = len(plan.warm_starts)
    line = plan.only_warm_starts(count)
    assert f"all {count} trials are warm starts (uniform, " in line
    assert f"only after {count}: give --trials (YAML: trials) more than {count}" in line
    assert plan.only_warm_starts(1).count("uniform") == 1
    assert plan.only_warm_starts(count + 1) is None
    assert make(graph, file, importance_of(graph), warm=False).only_warm_starts(1) is None


def test_budgets_that_no_proposal_is_left_for_are_told(graph, file, importance_of):
    plan = make(graph, file, importance_of(graph), budget_gflops="60%,45%,30%")
    count, limits = (
        len(plan.warm_starts),
        [f"{fraction * graph.gflops():.4g}" for fraction in (0.6, 0.45, 0.3)],
    )
    line = plan.only_warm_starts(count)
    assert line.startswith(f"nothing is searched for any of the 3 budgets ({', '.join(limits)} GFLOPs): all ")
    assert f"give --trials (YAML: trials) {count + 3} or more, one for each" in line
    line = plan.only_warm_starts(count + 1)
    assert line.startswith(
        f"nothing is searched for at least 2 of the 3 budgets ({', '.join(limits)} GFLOPs)"
    )
    assert f"all but 1 of the {count + 1} trials are warm starts; give --trials" in line
    assert "at least 1 of the 3 budgets" in plan.only_warm_starts(count + 2)
    assert plan.only_warm_starts(count + 3) is None


def test_every_vector_is_projected_onto_its_own_budget(graph, file, importance_of):
    plan = make(graph, file, importance_of(graph), budget_gflops="60%,30%")
    assert plan.budgets == [0.6 * graph.gflops(), 0.3 * graph.gflops()]
    random = np.random.default_rng(0)
    for budget, limit in enumerate(plan.budgets):
        for _ in range(20):
            widths = plan.widths(random.random(len(plan.variables)), budget)
            assert 0.9 * limit < flops(graph, widths) <= limit


def test_steps_too_coarse_for_the_budget_are_said_once_in_plain_words(chain, graph, file, importance_of):
    assert make(graph, file, importance_of(graph), budget_gflops="60%,30%").coarseness() is None
    coarse = file.model_copy(update={"round_to": 32})
    said = make(graph, coarse, importance_of(graph), budget_gflops="60%").coarseness()
    used = [0.0]
    for widths in itertools.product((32, 64), (32, 64), (32, 64, 96, 128), range(64, 257, 32)):
        fraction = float(graph.cost.flops(np.array(widths))) / 1e9 / (0.6 * graph.gflops())
        used.append(fraction if fraction <= 1 else 0.0)
    nearest = 1 - max(used)  # of all policies of the space; a suggestion need not lead to that one
    worst = float(said.partition("up to ")[2].partition("%")[0]) / 100
    assert worst > 0.02
    assert worst >= round(nearest, 3)
    assert "multiples of 32" in said


def test_all_bounds_hold_at_once(graph, file, importance_of):
    plan = make(graph, file, importance_of(graph), budget_gflops="60%", budget_mparams="30%")
    widths = plan.widths(np.full(len(plan.variables), 0.1), 0)
    assert flops(graph, widths) <= 0.6 * graph.gflops()
    ordered = np.array([widths[name] for name in graph.cost.names])
    assert float(graph.cost.params(ordered)) / 1e6 <= 0.3 * graph.mparams()


def test_warm_starts_are_on_budget_and_their_fractions_mean_their_widths(graph, file, importance_of):
    plan = make(graph, file, importance_of(graph), budget_gflops="60%,30%")
    origins = [start.origin for start in plan.warm_starts]
    assert origins[:2] == ["uniform", "uniform"]
    assert {start.budget for start in plan.warm_starts} == {0, 1}
    for start in plan.warm_starts:
        assert flops(graph, start.widths) <= plan.budgets[start.budget]
        assert plan.widths(np.array(start.fractions), start.budget) == start.widths


def test_without_a_budget_fractions_are_free_and_warm_starts_stand_at_several_costs(
    graph, file, importance_of
):
    plan = make(graph, file, importance_of(graph))
    assert plan.budgets == [None]
    assert plan.widths(np.zeros(len(plan.variables)), 0) == dict(
        zip(graph.cost.names, graph.cost.dense.tolist(), strict=True)
    )
    costs = {round(flops(graph, start.widths) / graph.gflops(), 1) for start in plan.warm_starts}
    assert len(costs) >= 3
    assert max(costs) < 1


def test_warm_starts_are_few_and_every_budget_gets_the_best_of_them(chain, file, importance_of):
    graph = chain(dense=(512, 256, 384, 512))  # wide enough for each method to end somewhere else
    dense = float(graph.cost.flops(graph.cost.dense)) / 1e9
    bounds = [(Budget("gflops", part * dense),) for part in (0.7, 0.6, 0.5, 0.4)]
    scores = {
        name: importance_of(graph, seed) for seed, name in enumerate(("joint", "taylor", "fisher", "l2"))
    }
    space = resolve(file, graph, scores["joint"])
    one = SpacePlan(space, bounds[:1], scores, {}).warm_starts
    ours = ["uniform", "greedy joint", "knapsack joint", "global joint", "global taylor", "greedy fisher"]
    origins = [start.origin for start in one]
    assert origins in (
        [*ours, "global l2"],
        [*ours[:2], *ours[3:], "global l2"],
    )  # greedy can be the best there is
    two, four = (SpacePlan(space, bounds[:count], scores, {}).warm_starts for count in (2, 4))
    assert (len(two), len(four)) == (8, 12)
    assert [start.budget for start in four] == [0, 1, 2, 3] * 3
    assert [start.origin for start in four[:8]] == [origin for origin in ours[:2] for _ in range(4)]
    assert {start.origin for start in four[8:]} <= set(ours[2:4])


def test_without_warm_starts_there_are_none(graph, file, importance_of):
    assert make(graph, file, importance_of(graph), warm=False, budget_gflops="50%").warm_starts == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget_gflops": "1%"}, r"smallest in this search space"),
        ({"budget_gflops": "50%,50.0%"}, r"holds a budget twice"),
        ({"budget_mparams": "0"}, r"not above 0"),
    ],
)
def test_budgets_that_cannot_be_met_are_refused(graph, file, importance_of, settings, message):
    with pytest.raises(BudgetError, match=message):
        make(graph, file, importance_of(graph), **settings)


def test_the_identity_tells_weights_space_budgets_and_data_apart(graph, file):
    bounds = read_bounds(make_config(budget_gflops="50%"), graph)
    other_bounds = read_bounds(make_config(budget_gflops="40%"), graph)
    other_file = file.model_copy(update={"round_to": 8})
    data = {"validation data": "d1"}
    identities = [
        identify("a" * 64, file, bounds, data),
        identify("b" * 64, file, bounds, data),
        identify("a" * 64, other_file, bounds, data),
        identify("a" * 64, file, other_bounds, data),
        identify("a" * 64, file, bounds, {"validation data": "d2"}),
    ]
    assert len({tuple(identity.items()) for identity in identities}) == 5
    assert identify("a" * 64, file, bounds, data) == identities[0]
