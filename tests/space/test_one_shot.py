"""Warm starts are what the published orders give, written here with plain loops over their definitions."""

import numpy as np
import pytest

from autoprune.errors import BudgetError
from autoprune.space.file import GroupRule
from autoprune.space.one_shot import greedy, uniform, warm_starts, widths_of


def test_uniform_prunes_every_group_by_the_same_ratio(chain, make_space, budget_of) -> None:
    graph = chain(dense=(256, 512, 1024, 256))
    space = make_space(graph)
    start = uniform(space, [budget_of(space, 0.4)])
    ratios = 1 - widths_of(space, start) / space.dense
    assert np.ptp(ratios) <= 2 * 8 / 256  # a rounding step or two apart
    assert 0.39 < graph.cost.flops(widths_of(space, start)) / graph.cost.flops(space.dense) <= 0.4


def test_uniform_goes_as_far_as_each_group_lets_it(chain, make_space, budget_of) -> None:
    graph = chain(dense=(256, 256, 256))
    rules = (GroupRule(match="body.*", max_ratio=0.75), GroupRule(match="body.layer1.*", max_ratio=0.25))
    space = make_space(graph, groups=rules)
    widths = widths_of(space, uniform(space, [budget_of(space, 0.4)]))
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
def test_greedy_takes_the_least_importance_per_cost(
    chain, importance_of, fraction: float, make_space, budget_of
) -> None:
    graph = chain()
    space, importance = make_space(graph), importance_of(graph)
    limit = budget_of(space, fraction)
    widths = widths_of(space, greedy(space, importance, [limit], "taylor"))
    expected = reference_greedy(graph, space, importance, limit.limit)
    assert (widths >= expected).all()  # steps are only undone, where they fit
    assert (widths != expected).sum() <= 1
    assert graph.cost.flops(expected) <= graph.cost.flops(widths) <= limit.limit * 1e9


@pytest.mark.parametrize("fraction", [0.7, 0.33])
def test_the_global_ranking_removes_channels_in_the_order_of_their_scores(
    chain, importance_of, fraction, make_space, budget_of
):
    graph = chain()
    space, importance = make_space(graph, round_to=1, min_width=1, max_ratio=0.99), importance_of(graph)
    budget = budget_of(space, fraction)
    widths = widths_of(space, greedy(space, importance, [budget], "taylor", per_cost=False))
    expected = space.dense.copy()
    order = sorted((score, place) for place, name in enumerate(space.names) for score in importance[name])
    for _, place in order:
        if graph.cost.flops(expected) > budget.limit * 1e9 and expected[place] > space.lowest[place]:
            expected[place] -= 1
    assert (widths >= expected).all()  # steps are only undone, where they fit
    assert (widths - expected).sum() <= 5


def test_greedy_is_near_the_best_there_is(chain, importance_of, make_space, budget_of) -> None:
    """Against all policies of a small space: a step at a time can't be far off."""
    graph = chain(dense=(64, 64, 64))
    space = make_space(graph)
    grid = np.stack(np.meshgrid(*[np.arange(16, 65, 8)] * 3), -1).reshape(-1, 3)
    for seed in range(5):
        importance = importance_of(graph, seed)
        sums = [np.concatenate([[0], np.cumsum(np.sort(importance[name]))]) for name in space.names]
        lost = sum(total[64 - grid[:, place]] for place, total in enumerate(sums))
        limit = budget_of(space, 0.4)
        best = lost[space.cost("gflops", grid) <= limit.limit].min()
        widths = widths_of(space, greedy(space, importance, [limit], "taylor"))
        ours = sum(total[64 - widths[place]] for place, total in enumerate(sums))
        assert best <= ours + 1e-12
        assert ours <= 1.15 * best + 1e-12


def test_greedy_ignores_the_scale_of_weights_but_not_of_losses(
    chain, importance_of, make_space, budget_of
) -> None:
    graph = chain()
    space, importance = make_space(graph), importance_of(graph)
    scaled = {**importance, "body.layer2.conv": 1000 * importance["body.layer2.conv"]}
    limits = [budget_of(space, 0.5)]
    by_size = [greedy(space, scores, limits, "l2").widths for scores in (scaled, importance)]
    assert by_size[0] == by_size[1]
    protected = widths_of(space, greedy(space, scaled, limits, "taylor"))
    assert protected[2] > widths_of(space, greedy(space, importance, limits, "taylor"))[2]


@pytest.mark.parametrize("granularity", ["layer", "block", "stage"])
@pytest.mark.parametrize("fraction", [0.8, 0.5, 0.3])
@pytest.mark.parametrize("both", [False, True])
def test_the_fractions_to_enqueue_give_exactly_the_widths(
    chain, importance_of, granularity, fraction, both, make_space, budget_of
) -> None:
    names = [f"body.layer{i // 3}.{i % 3}.conv{j}" for i in range(6) for j in (1, 2)]
    graph = chain(dense=(64, 96, 128, 100, 256, 36, 64, 64, 72, 128, 256, 256), names=names)
    space, importance = make_space(graph, granularity=granularity), importance_of(graph)
    budgets = [budget_of(space, fraction)] + [budget_of(space, fraction, "mparams")] * both
    importances = {"taylor": importance, "l2": importance, "fisher": importance_of(graph, 1)}
    starts = warm_starts(space, importances, budgets, index=3)
    assert starts
    for start in starts:
        assert len(start.fractions) == len(space.variables)
        assert all(0 <= fraction <= 1 for fraction in start.fractions)
        projected = space.project_to_budget(np.array(start.fractions), budgets)
        assert space.as_dict(projected) == start.widths, start.origin
        assert start.budget == 3
        assert 0.98 < space.budget_usage(projected, budgets) <= 1


def test_no_widths_come_twice(chain, importance_of, make_space, budget_of) -> None:
    graph = chain()
    space, importance = make_space(graph), importance_of(graph, 1)
    starts = warm_starts(space, {"taylor": importance, "fisher": importance}, [budget_of(space, 0.5)])
    names = [start.origin for start in starts]
    assert names[:2] == ["uniform", "greedy taylor"]
    assert len({tuple(start.widths.items()) for start in starts}) == len(starts) >= 3


def test_only_scores_in_units_of_the_loss_are_weighed_against_cost(
    chain, importance_of, make_space, budget_of
) -> None:
    graph = chain(dense=(256,) * 4)
    space = make_space(graph)
    importances = {name: importance_of(graph, seed) for seed, name in enumerate(("taylor", "l2", "fisher"))}
    names = [start.origin for start in warm_starts(space, importances, [budget_of(space, 0.4)])]
    assert names == [
        "uniform", "greedy taylor", "knapsack taylor", "global taylor", "global l2", "greedy fisher"
    ]  # fmt: skip
    weights_first = {name: importances[name] for name in ("l2", "taylor")}
    starts = warm_starts(space, weights_first, [budget_of(space, 0.4)])
    assert [start.origin for start in starts] == ["uniform", "global l2", "global taylor"]


def test_curves_come_before_the_criterion_and_are_weighed_against_cost(
    chain, importance_of, make_space, budget_of
) -> None:
    graph = chain(dense=(256,) * 4)
    space = make_space(graph)
    importances = {name: importance_of(graph, seed) for seed, name in enumerate(("curves", "l2", "taylor"))}
    names = [start.origin for start in warm_starts(space, importances, [budget_of(space, 0.4)])]
    assert names == ["uniform", "greedy curves", "knapsack curves", "global l2", "global taylor"]
    of_loss = {"curves": importances["curves"], "taylor": importances["taylor"]}
    names = [start.origin for start in warm_starts(space, of_loss, [budget_of(space, 0.4)])]
    # where several budgets get three each, both orders are tried
    assert names[:3] == ["uniform", "greedy curves", "greedy taylor"]


def test_an_impossible_budget_is_refused(chain, importance_of, make_space, budget_of) -> None:
    graph = chain()
    space = make_space(graph, max_ratio=0.2)
    for make in (lambda b: uniform(space, b), lambda b: greedy(space, importance_of(graph), b, "taylor")):
        with pytest.raises(BudgetError, match="can't be reached"):
            make([budget_of(space, 0.3)])


def test_greedy_asks_the_cost_model_once_or_twice_per_step(
    chain, importance_of, make_space, budget_of, count_costs
) -> None:
    graph = chain(dense=(256,) * 80)
    space = make_space(graph)
    budget = budget_of(space, 0.33)
    count = count_costs(graph)
    start = greedy(space, importance_of(graph), [budget], "taylor")
    steps = int(((space.dense - widths_of(space, start)) // space.step).sum())
    assert count.calls < 3 * steps
    assert count.rows < 3 * steps * 80
