"""The knapsack finds the best policy of small spaces, and is no worse than any greedy order elsewhere."""

import numpy as np
import pytest

from autoprune.space.one_shot import greedy, knapsack, widths_of


@pytest.mark.parametrize("fraction", [0.7, 0.4, 0.25])
@pytest.mark.parametrize("seed", range(6))
def test_the_knapsack_finds_the_best_there_is(
    chain, importance_of, fraction, seed, make_space, budget_of, removed_from
) -> None:
    """Against all 7**4 policies."""
    graph = chain(dense=(64,) * 4)
    space, importance = make_space(graph), importance_of(graph, seed)
    budgets = [budget_of(space, fraction)]
    grid = np.stack(np.meshgrid(*[np.arange(16, 65, 8)] * 4), -1).reshape(-1, 4)
    sums = [np.concatenate([[0], np.cumsum(np.sort(importance[name]))]) for name in space.names]
    lost = sum(total[64 - grid[:, place]] for place, total in enumerate(sums))
    best = lost[graph.cost.flops(grid) <= budgets[0].limit * 1e9].min()
    widths = widths_of(space, knapsack(space, importance, budgets, "taylor"))
    assert graph.cost.flops(widths) <= budgets[0].limit * 1e9
    assert removed_from(space, importance, widths) == pytest.approx(best, rel=1e-9)


@pytest.mark.parametrize("granularity", ["layer", "stage"])
@pytest.mark.parametrize("seed", range(4))
def test_the_knapsack_removes_no_more_than_any_greedy_order(
    chain, importance_of, granularity, seed, make_space, budget_of, removed_from
) -> None:
    names = [f"body.layer{i // 3}.{i % 3}.conv{j}" for i in range(6) for j in (1, 2)]
    graph = chain(dense=(64, 96, 128, 100, 256, 36, 64, 64, 72, 128, 256, 256), names=names)
    space, importance = make_space(graph, granularity=granularity), importance_of(graph, seed)
    for budgets in ([budget_of(space, 0.4)], [budget_of(space, 0.6), budget_of(space, 0.3, "mparams")]):
        best = knapsack(space, importance, budgets, "taylor")
        assert 0.98 < space.budget_usage(widths_of(space, best), budgets) <= 1
        for per_cost in (True, False):
            other = greedy(space, importance, budgets, "taylor", per_cost=per_cost)
            ours, theirs = (
                removed_from(space, importance, widths_of(space, start)) for start in (best, other)
            )
            assert ours <= theirs + 1e-9
