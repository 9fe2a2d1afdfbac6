import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.errors import ConfigError, ModelError
from autoprune.graph import analyze
from autoprune.importance import CRITERIA, score, score_together


def toy_graph(model: nn.Module):
    return analyze(model, ([torch.rand(3, 8, 8)],))


@pytest.mark.parametrize("norm", ["batch", "frozen", "group"])
def test_scores_of_several_criteria_are_those_of_each(detector, detector_batches, norm: str) -> None:
    """On torchvision's RetinaNet, which stays as it is; the first layer is frozen as torchvision's are."""
    model = detector(norm).eval()
    model.backbone.stem.weight.requires_grad_(False)
    graph = analyze(model, ([torch.rand(3, 64, 64)],))
    before = copy.deepcopy(model.state_dict())
    require_grad = [p.requires_grad for p in model.parameters()]
    together = score_together(list(CRITERIA), model, graph, detector_batches, seed=3)
    assert list(together) == list(CRITERIA)
    for criterion, importance in together.items():
        single = score(criterion, model, graph, detector_batches, seed=3)
        assert list(importance) == list(single) == list(graph.prunable)
        for name, scores in importance.items():
            assert scores.tolist() == single[name].tolist()
            assert scores.dtype == np.float64
            assert scores.shape == (graph.groups[name].width,)
            assert (scores >= 0).all()
            assert len(np.unique(scores)) > 1 or criterion == "bn_scale"  # its gammas are all 1
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == require_grad
    assert all(p.grad is None for p in model.parameters())
    assert not any(module.training for module in model.modules())


def test_gradient_criteria_share_one_pass_over_the_images(toy, toy_batches) -> None:
    model, passes = toy(), []

    def counted():
        passes.append(1)
        return toy_batches()()

    graph = toy_graph(model)
    score_together(("joint", "taylor", "fisher", "l2"), model, graph, counted)
    assert len(passes) == 1
    score_together(("l1", "random"), model, graph, counted)
    assert len(passes) == 1


def test_scores_that_are_finished_are_kept_before_the_next_criterion_begins(toy, toy_batches) -> None:
    kept: dict[str, dict[str, np.ndarray]] = {}
    model = toy()
    graph = toy_graph(model)

    def batches():
        assert len(kept) in (0, 2)  # the gradient ones take the first pass, and are kept before the second
        if kept:
            raise KeyboardInterrupt
        return toy_batches()()

    with pytest.raises(KeyboardInterrupt):
        score_together(("obs", "taylor", "fisher"), model, graph, batches, keep=kept.__setitem__)
    assert {*kept} == {"taylor", "fisher"}
    single = score("taylor", model, graph, toy_batches())
    assert all((kept["taylor"][name] == scores).all() for name, scores in single.items())


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


@pytest.mark.parametrize("together", [False, True])
def test_a_loss_that_is_not_finite_names_the_group(toy, toy_batches, together: bool) -> None:
    model = toy()
    graph = toy_graph(model)
    with torch.no_grad():
        model.last.bias.fill_(float("nan"))
        model.power = 2
    criteria = partial(score_together, ["l2", "fisher"]) if together else partial(score, "fisher")
    with pytest.raises(ModelError, match=r"`fisher` is not finite on group `first`: the loss"):
        criteria(model, graph, toy_batches())
