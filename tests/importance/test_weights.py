"""Criteria that read the weights alone, against sums by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.graph import analyze
from autoprune.importance import weights


def toy_graph(model: nn.Module):
    return analyze(model, ([torch.rand(3, 8, 8)],))


def test_weights_of_coupled_layers_add_up(toy) -> None:
    model = toy()
    first, second = (layer.weight.detach().double().numpy() for layer in (model.first, model.second))
    rows = [np.concatenate([first[c].ravel(), second[c].ravel()]) for c in range(6)]
    graph = toy_graph(model)
    np.testing.assert_allclose(weights.l1(model, graph)["first"], [np.abs(row).sum() for row in rows])
    np.testing.assert_allclose(weights.l2(model, graph)["first"], [np.sqrt((row**2).sum()) for row in rows])


@pytest.mark.parametrize("frozen", [False, True])
def test_bn_scale_is_the_size_of_gamma(toy, frozen: bool) -> None:
    model = toy(frozen=frozen)
    gamma = np.abs(model.norm.weight.detach().double().numpy())
    np.testing.assert_allclose(weights.bn_scale(model, toy_graph(model))["first"], gamma)


def test_bn_scale_falls_back_to_l2_at_the_level_of_the_gammas() -> None:
    class Plain(nn.Sequential):
        def forward(self, images):
            return super().forward(torch.stack(images))

    model = Plain(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    gamma = torch.tensor([1.0, -2, 3, 4, 5, 9])
    with torch.no_grad():
        model[1].weight.copy_(gamma)
    scores = weights.bn_scale(model, toy_graph(model))
    assert scores["0"].tolist() == gamma.abs().tolist()
    norms = model[2].weight.detach().double().flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(scores["2"], norms / norms.mean() * 4.0)  # the mean of the gammas


def test_random_is_a_function_of_the_seed(toy) -> None:
    graph = toy_graph(toy())
    one, other = (weights.random(graph, seed)["first"] for seed in (1, 2))
    assert len({*one, *other}) == 12


def test_a_buffer_that_no_state_dict_has_is_no_weight() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.enter, self.leave = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 2, 1)
            self.register_buffer("gain", torch.rand(6, 1, 1), persistent=False)

        def forward(self, images: list[torch.Tensor]) -> torch.Tensor:
            return self.leave(self.enter(torch.stack(images)) * self.gain)

    model = Scaled()
    graph = toy_graph(model)
    assert "gain" in {tensor for tensor, _, _ in graph.groups["enter"].members}
    norms = model.enter.weight.detach().double().flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(weights.l2(model, graph)["enter"], norms)
    np.testing.assert_allclose(weights.bn_scale(model, graph)["enter"], norms / norms.mean())
