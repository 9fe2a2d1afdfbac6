import time

import numpy as np
import pytest

from autoprune.cost.budget import Budget
from autoprune.errors import BudgetError
from autoprune.space.derive import GroupRule, SpaceFile, resolve
from autoprune.space.one_shot import greedy, knapsack, uniform, warm_starts


def make_space(graph, max_ratio: float = 0.75, **changes):
    fields = {
        "granularity": "layer",
        "round_to": 8,
        "groups": (GroupRule(match="body.*", max_ratio=max_ratio),),
    }
    return resolve(SpaceFile(model="m", input_size=(64, 64), **{**fields, **changes}), graph)


def fraction(space, fraction: float, metric="gflops") -> Budget:
    return Budget(metric, fraction * float(space.cost(metric, space.dense)))


def test_uniform_prunes_every_group_by_the_same_ratio(chain) -> None:
    graph = chain(dense=(256, 512, 1024, 256))
    space = make_space(graph)
    start = uniform(space, [fraction(space, 0.4)])
    ratios = 1 - start.widths / space.dense
    assert np.ptp(ratios) <= 2 * 8 / 256  # a rounding step or two apart
    assert 0.39 < graph.cost.flops(start.widths) / graph.cost.flops(space.dense) <= 0.4


def test_uniform_goes_as_far_as_each_group_lets_it(chain) -> None:
    graph = chain(dense=(256, 256, 256))
    rules = (GroupRule(match="body.*", max_ratio=0.75), GroupRule(match="body.layer1.*", max_ratio=0.25))
    space = make_space(graph, groups=rules)
    widths = uniform(space, [fraction(space, 0.4)]).widths
    assert widths[1] == 192
    assert abs(widths[0] - widths[2]) <= 16  # two steps: rounding, and what the slack had room for


def reference_greedy(graph, space, importance, limit: float) -> np.ndarray:
    """One step at a time, written with plain loops over the definition; no taking back."""
    widths = space.dense.copy()
    while graph.cost.flops(widths) > limit * 1e9:
        best, least = None, np.inf
        for place, name in enumerate(space.names):
            after = (widths[place] - 1) // 8 * 8
            if after < space.lowest[place]:
                continue
            scores = np.sort(importance[name])
            lost = (
                scores[: space.dense[place] - after].sum()
                - scores[: space.dense[place] - widths[place]].sum()
            )
            less = widths.copy()
            less[place] = after
            over = max(float(graph.cost.flops(less)) / 1e9 / limit - 1, 0)
            saved = float(graph.cost.flops(widths)) / 1e9 / limit - 1 - over
            if lost / saved < least:
                best, least = less, lost / saved
        widths = best
    return widths


@pytest.mark.parametrize("fraction", [0.7, 0.5, 0.33, 0.2])
def test_greedy_takes_the_least_importance_per_cost(chain, importance_of, fraction: float) -> None:
    graph = chain()
    space, importance = make_space(graph), importance_of(graph)
    limit = fraction(space, fraction)
    widths = greedy(space, importance, [limit], "taylor").widths
    expected = reference_greedy(graph, space, importance, limit.limit)
    assert (widths >= expected).all()  # steps are only given back, where they fit
    assert (widths != expected).sum() <= 1
    assert graph.cost.flops(expected) <= graph.cost.flops(widths) <= limit.limit * 1e9


@pytest.mark.parametrize("fraction", [0.7, 0.33])
def test_the_global_ranking_removes_channels_in_the_order_of_their_scores(chain, importance_of, fraction):
    graph = chain()
    space, importance = make_space(graph, round_to=1, min_width=1, max_ratio=0.99), importance_of(graph)
    budget = fraction(space, fraction)
    widths = greedy(space, importance, [budget], "taylor", per_cost=False).widths
    expected = space.dense.copy()
    order = sorted((score, place) for place, name in enumerate(space.names) for score in importance[name])
    for _, place in order:
        if graph.cost.flops(expected) > budget.limit * 1e9 and expected[place] > space.lowest[place]:
            expected[place] -= 1
    assert (widths >= expected).all()  # channels are only taken back, where they fit
    assert (widths - expected).sum() <= 5


def test_greedy_is_near_the_best_there_is(chain, importance_of) -> None:
    """Against all policies of a small space: a step at a time can't be far off."""
    graph = chain(dense=(64, 64, 64))
    space = make_space(graph)
    grid = np.stack(np.meshgrid(*[np.arange(16, 65, 8)] * 3), -1).reshape(-1, 3)
    for seed in range(5):
        importance = importance_of(graph, seed)
        sums = [np.concatenate([[0], np.cumsum(np.sort(importance[name]))]) for name in space.names]
        lost = sum(total[64 - grid[:, place]] for place, total in enumerate(sums))
        limit = fraction(space, 0.4)
        best = lost[space.cost("gflops", grid) <= limit.limit].min()
        widths = greedy(space, importance, [limit], "taylor").widths
        ours = sum(total[64 - widths[place]] for place, total in enumerate(sums))
        assert best <= ours + 1e-12
        assert ours <= 1.15 * best + 1e-12


def lost_by(space, importance, widths) -> float:
    """The surrogate, from the definition: the sum of the least important scores of each group."""
    return sum(
        float(np.sort(importance[name])[: dense - width].sum())
        for name, width, dense in zip(space.names, widths, space.dense, strict=True)
    )


@pytest.mark.parametrize("fraction", [0.7, 0.4, 0.25])
@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_finds_the_best_there_is(chain, importance_of, fraction, seed) -> None:
    """Against all 7**4 policies."""
    graph = chain(dense=(64,) * 4)
    space, importance = make_space(graph), importance_of(graph, seed)
    budgets = [fraction(space, fraction)]
    grid = np.stack(np.meshgrid(*[np.arange(16, 65, 8)] * 4), -1).reshape(-1, 4)
    sums = [np.concatenate([[0], np.cumsum(np.sort(importance[name]))]) for name in space.names]
    lost = sum(total[64 - grid[:, place]] for place, total in enumerate(sums))
    best = lost[graph.cost.flops(grid) <= budgets[0].limit * 1e9].min()
    widths = knapsack(space, importance, budgets).widths
    assert graph.cost.flops(widths) <= budgets[0].limit * 1e9
    assert lost_by(space, importance, widths) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("granularity", ["layer", "stage"])
@pytest.mark.parametrize("seed", range(4))
def test_the_knapsack_removes_no_more_than_any_greedy_order(chain, importance_of, granularity, seed) -> None:
    names = [f"body.layer{i // 3}.{i % 3}.conv{j}" for i in range(6) for j in (1, 2)]
    graph = chain(dense=(64, 96, 128, 100, 256, 36, 64, 64, 72, 128, 256, 256), names=names)
    space, importance = make_space(graph, granularity=granularity), importance_of(graph, seed)
    for budgets in ([fraction(space, 0.4)], [fraction(space, 0.6), fraction(space, 0.3, "mparams")]):
        found = knapsack(space, importance, budgets)
        assert 0.98 < space.budget_usage(found.widths, budgets) <= 1
        for per_cost in (True, False):
            other = greedy(space, importance, budgets, per_cost=per_cost)
            ours, theirs = (lost_by(space, importance, start.widths) for start in (found, other))
            assert ours <= theirs + 1e-9


def test_greedy_ignores_the_scale_of_weights_but_not_of_losses(chain, importance_of) -> None:
    graph = chain()
    space, importance = make_space(graph), importance_of(graph)
    scaled = {**importance, "body.layer2.conv": 1000 * importance["body.layer2.conv"]}
    limits = [fraction(space, 0.5)]
    assert (
        greedy(space, scaled, limits, "l2").widths.tolist()
        == greedy(space, importance, limits, "l2").widths.tolist()
    )
    protected = greedy(space, scaled, limits, "taylor").widths
    assert protected[2] > greedy(space, importance, limits, "taylor").widths[2]


@pytest.mark.parametrize("granularity", ["layer", "block", "stage"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("both", [False, True])
def test_the_shares_to_enqueue_give_exactly_the_widths(
    chain, importance_of, granularity, fraction, both
) -> None:
    names = [f"body.layer{i // 3}.{i % 3}.conv{j}" for i in range(6) for j in (1, 2)]
    graph = chain(dense=(64, 96, 128, 100, 256, 36, 64, 64, 72, 128, 256, 256), names=names)
    space, importance = make_space(graph, granularity=granularity), importance_of(graph)
    budgets = [fraction(space, fraction)] + [fraction(space, fraction, "mparams")] * both
    importances = {"taylor": importance, "l2": importance, "fisher": importance_of(graph, 1)}
    for start in warm_starts(space, importances, budgets):
        assert start.fractions.shape == (len(space.variables),)
        assert (start.fractions >= 0).all()
        assert (start.fractions <= 1).all()
        assert space.project_to_budget(start.fractions, budgets).tolist() == start.widths.tolist(), start.name
        assert 0.98 < space.budget_usage(start.widths, budgets) <= 1


def test_no_widths_come_twice(chain, importance_of) -> None:
    graph = chain()
    space, importance = make_space(graph), importance_of(graph, 1)
    starts = warm_starts(space, {"taylor": importance, "fisher": importance}, [fraction(space, 0.5)])
    names = [start.name for start in starts]
    assert names[:2] == ["uniform", "knapsack taylor"]
    assert len({start.widths.tobytes() for start in starts}) == len(starts) >= 3


def test_only_scores_in_units_of_the_loss_are_weighed_against_cost(chain, importance_of) -> None:
    graph = chain(dense=(256,) * 4)
    space = make_space(graph)
    importances = {name: importance_of(graph, seed) for seed, name in enumerate(("taylor", "l2", "fisher"))}
    names = [start.name for start in warm_starts(space, importances, [fraction(space, 0.4)])]
    assert names == [
        "uniform", "knapsack taylor", "global taylor", "greedy taylor", "global l2", "greedy fisher"
    ]  # fmt: skip
    weights_first = {name: importances[name] for name in ("l2", "taylor")}
    found = warm_starts(space, weights_first, [fraction(space, 0.4)])
    assert [start.name for start in found] == ["uniform", "global l2", "global taylor"]


def test_an_impossible_budget_is_refused(chain, importance_of) -> None:
    graph = chain()
    space = make_space(graph, max_ratio=0.2)
    for make in (lambda b: uniform(space, b), lambda b: greedy(space, importance_of(graph), b)):
        with pytest.raises(BudgetError, match="can't be reached"):
            make([fraction(space, 0.3)])


def test_greedy_is_fast(chain, importance_of) -> None:
    graph = chain(dense=(256,) * 80)
    space = make_space(graph)
    start = time.perf_counter()
    greedy(space, importance_of(graph), [fraction(space, 0.33)])
    assert time.perf_counter() - start < 5
