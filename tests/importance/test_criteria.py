"""The contract of every criterion, and the ones that read weights alone against sums by hand."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import ConfigError, ModelError
from autoprune.graph import analyze
from autoprune.importance import CRITERIA, NEEDS_DATA, score


def toy_graph(model: nn.Module):
    return analyze(model, ([torch.rand(3, 8, 8)],))


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_a_criterion_scores_every_channel_and_changes_nothing(
    detector, detector_batches, criterion, norm
) -> None:
    model = detector(norm).eval()
    model.backbone.stem.weight.requires_grad_(False)  # as torchvision freezes the first layers
    graph = analyze(model, ([torch.rand(3, 64, 64)],))
    before = copy.deepcopy(model.state_dict())
    asked = [p.requires_grad for p in model.parameters()]
    random_state = torch.get_rng_state()
    importance = score(criterion, model, graph, detector_batches, seed=3)
    assert set(importance) == set(graph.prunable)
    for name, scores in importance.items():
        assert scores.dtype == np.float64
        assert scores.shape == (graph.groups[name].width,)
        assert (scores >= 0).all()
        assert len(np.unique(scores)) > 1 or criterion == "bn_scale"  # the tiny detector's gammas are all 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == asked
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random_state)
    again = score(criterion, model, graph, detector_batches, seed=3)
    assert all(importance[name].tolist() == again[name].tolist() for name in importance)


@pytest.mark.parametrize("criterion", [name for name in CRITERIA if name != "random"])
def test_scores_move_with_the_channels(toy, toy_batches, criterion: str) -> None:
    model = toy(nn.ReLU(), power=2)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    permuted = copy.deepcopy(model)
    with torch.no_grad():
        for module in (permuted.first, permuted.second, permuted.norm):
            for tensor in [*module.parameters(), *(b for b in module.buffers() if b.ndim)]:
                tensor.copy_(tensor[order].clone())
        permuted.last.weight.copy_(permuted.last.weight[:, order].clone())
    ours, theirs = (score(criterion, m, toy_graph(m), toy_batches())["first"] for m in (model, permuted))
    np.testing.assert_allclose(theirs, ours[order.numpy()], rtol=1e-4)


def test_weights_of_coupled_layers_add_up(toy) -> None:
    model = toy()
    first, second = (layer.weight.detach().double().numpy() for layer in (model.first, model.second))
    rows = [np.concatenate([first[c].ravel(), second[c].ravel()]) for c in range(6)]
    graph = toy_graph(model)
    np.testing.assert_allclose(score("l1", model, graph)["first"], [np.abs(row).sum() for row in rows])
    np.testing.assert_allclose(score("l2", model, graph)["first"], [np.sqrt((row**2).sum()) for row in rows])


@pytest.mark.parametrize("frozen", [False, True])
def test_bn_scale_is_the_size_of_gamma(toy, frozen: bool) -> None:
    model = toy(frozen=frozen)
    gamma = np.abs(model.norm.weight.detach().double().numpy())
    np.testing.assert_allclose(score("bn_scale", model, toy_graph(model))["first"], gamma)


def test_bn_scale_falls_back_to_l2_at_the_level_of_the_gammas() -> None:
    class Plain(nn.Sequential):
        def forward(self, images):
            return super().forward(torch.stack(images))

    model = Plain(nn.Conv2d(3, 6, 1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1))
    gamma = torch.tensor([1.0, -2, 3, 4, 5, 9])
    with torch.no_grad():
        model[1].weight.copy_(gamma)
    scores = score("bn_scale", model, toy_graph(model))
    assert scores["0"].tolist() == gamma.abs().tolist()
    sizes = model[2].weight.detach().double().flatten(1).norm(dim=1).numpy()
    np.testing.assert_allclose(scores["2"], sizes / sizes.mean() * 4.0)  # the mean of the gammas


def test_random_is_a_function_of_the_seed(toy) -> None:
    model = toy()
    graph = toy_graph(model)
    one, other = (score("random", model, graph, seed=seed)["first"] for seed in (1, 2))
    assert len({*one, *other}) == 12


def test_an_unknown_criterion_names_the_nearest(toy) -> None:
    model = toy()
    with pytest.raises(ConfigError, match="no criterion `tailor`; choose taylor"):
        score("tailor", model, toy_graph(model))


def test_broken_weights_are_named(toy) -> None:
    model = toy()
    graph = toy_graph(model)
    with torch.no_grad():
        model.first.weight[2, 0, 0, 0] = float("nan")
    with pytest.raises(ModelError, match=r"`l2` is not finite on group `first`: the weights are not"):
        score("l2", model, graph)


def test_what_needs_data_is_known() -> None:
    assert set(CRITERIA) >= NEEDS_DATA
