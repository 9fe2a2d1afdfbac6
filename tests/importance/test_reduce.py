from types import SimpleNamespace

import numpy as np
import pytest
import torch

from autoprune.graph import analyze, prune
from autoprune.importance.reduce import per_cost, per_unit, removed_fraction


def test_units_add_up_their_channels() -> None:
    group = SimpleNamespace(units=np.array([[0, 3], [1, 4], [2, 5]]))
    assert per_unit(np.array([1.0, 2, 3, 10, 20, 30]), group).tolist() == [11, 22, 33]


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_scores_per_cost_against_pruned_models(detector, norm: str) -> None:
    """Parameters of a really pruned model; GFLOPs from the graph's public figures."""
    model = detector(norm)
    graph = analyze(model, ([torch.rand(3, 64, 64)],))
    ones = {name: np.ones(group.width) for name, group in graph.prunable.items()}
    by_gflops, by_mparams = per_cost(ones, graph), per_cost(ones, graph, "mparams")
    for name in list(graph.prunable)[::3]:
        group = graph.groups[name]
        smaller = prune(model, graph, {name: list(range(group.unit, group.width))})
        saved = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in smaller.parameters())
        assert by_mparams[name][0] == pytest.approx(group.unit / saved * 1e6)
        less = graph.gflops() - graph.gflops({name: group.width - group.unit})
        np.testing.assert_allclose(by_gflops[name], group.unit / less, rtol=1e-6)


def test_a_group_that_is_not_prunable_has_no_score_per_cost(detector) -> None:
    graph = analyze(detector("batch"), ([torch.rand(3, 64, 64)],))
    with pytest.raises(ValueError, match="`nothing` is not prunable"):
        per_cost({"nothing": np.ones(3)}, graph)


def test_the_cumulative_curve_by_hand() -> None:
    assert removed_fraction(np.array([5.0, 1, 2, 2])).tolist() == [0, 0.1, 0.3, 0.5, 1]
    assert removed_fraction(np.zeros(4)).tolist() == [0, 0.25, 0.5, 0.75, 1]
