"""Steps of a training run, through `train`, against updates that are written out."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from autoprune.errors import TrainingError
from autoprune.training import TrainSettings, train

CPU = torch.device("cpu")


def test_the_average_is_the_weighted_sum_of_all_weights(toy: nn.Module, split: Any) -> None:
    """Against the closed form: w_T = Σ_t (1 - d_t) Π_{s>t} d_s · w_t + Π d_t · w_0."""
    steps = 6
    settings = TrainSettings(steps, batch_size=4, learning_rate=0.01, ema_decay=0.4, warmup=0)
    trail: list[dict[str, Tensor]] = []

    def remember(module: nn.Module, args: Any) -> None:
        if module.training:
            trail.append({name: p.detach().clone() for name, p in module.named_parameters()})

    toy.register_forward_pre_hook(remember)  # a deep copy keeps the hook
    averaged = train(toy, split, settings, CPU).model
    last = train(toy, split, TrainSettings(**{**vars(settings), "ema_decay": 0.0}), CPU).model
    path = [*trail[:steps], dict(last.named_parameters())]  # the decay does not change the path
    decays = [min(0.4, (1 + step) / (10 + step)) for step in range(steps)]
    assert decays[0] < 0.4 == decays[-1]
    fractions = [(1 - decays[t]) * math.prod(decays[t + 1 :]) for t in range(steps)]
    for name, value in averaged.named_parameters():
        expected = math.prod(decays) * path[0][name]
        for fraction, weights in zip(fractions, path[1:], strict=True):
            expected = expected + fraction * weights[name]
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)


def test_a_step_is_adamw_on_the_clipped_gradient(toy: nn.Module, split: Any) -> None:
    """Against AdamW's update, written out: its first step is lr · sign(g) up to epsilon, and the decay."""
    toy.dropout.p = 0.0
    settings = TrainSettings(
        1, batch_size=4, learning_rate=0.01, weight_decay=0.5, warmup=0, ema_decay=0, clip_norm=1e-3
    )
    trained = train(toy, split, settings, CPU).model
    manual = copy.deepcopy(toy).train()
    indices, flips = split.calls[0]
    sum(manual(*split.batch(indices, CPU, flips)).values()).backward()
    norm = torch.cat([p.grad.flatten() for p in manual.parameters()]).norm()
    assert norm > 1e-3
    for name, weight in manual.named_parameters():
        gradient = weight.grad * 1e-3 / (norm + 1e-6)
        decay = 0.5 if weight.ndim > 1 else 0.0
        expected = weight * (1 - 0.01 * decay) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(trained.get_parameter(name), expected, rtol=1e-4, atol=1e-4)


def test_a_loss_that_is_not_finite_names_the_step(toy: nn.Module, split: Any) -> None:
    split.images[:] = torch.nan
    with pytest.raises(TrainingError, match=r"loss is not finite at step 1 of 4 .*box nan.*learning_rate"):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


def test_a_gradient_that_is_not_finite_is_found(toy: nn.Module, split: Any) -> None:
    toy.head.register_full_backward_hook(lambda *_: (torch.full((2, 6), torch.inf),))
    with pytest.raises(TrainingError, match="gradient is not finite at step 1 of 4"):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


def test_frozen_norms_stay_as_they_are(tiny_retinanet: Any, image_split: Any) -> None:
    model = tiny_retinanet(FrozenBatchNorm2d)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    trained = train(model, image_split, TrainSettings(2, batch_size=2, warmup=0), CPU).model
    buffers = dict(model.named_buffers())
    assert len(buffers) == 60  # four each of 15 norms: fewer would compare nothing
    assert all(torch.equal(trained.get_buffer(name), value) for name, value in buffers.items())
    assert not torch.equal(trained.backbone.body.conv1.weight, model.backbone.body.conv1.weight)


def test_weights_that_need_no_gradient_stay_as_they_are(toy: nn.Module, split: Any) -> None:
    toy.backbone.conv1.requires_grad_(False)
    trained = train(toy, split, TrainSettings(3, batch_size=2, learning_rate=0.1), CPU).model
    assert torch.equal(trained.backbone.conv1.weight, toy.backbone.conv1.weight)
    assert not trained.backbone.conv1.weight.requires_grad
    assert not torch.equal(trained.head.weight, toy.head.weight)
    with pytest.raises(TrainingError, match="requires_grad"):
        train(toy.requires_grad_(False), split, TrainSettings(3), CPU)


def test_bfloat16_is_used_only_where_the_cpu_has_it(
    toy: nn.Module, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {}
    for bf16, amx in [(None, True), (True, False), (True, True), (False, True)]:
        monkeypatch.setattr("autoprune.training.state.has_amx", lambda amx=amx: amx)
        losses[bf16, amx] = train(toy, split, TrainSettings(2, batch_size=2, bf16=bf16), CPU).losses
    assert losses[None, True] == losses[True, False] == losses[False, True]
    assert losses[True, True] != losses[None, True]
    assert losses[True, True] == pytest.approx(losses[None, True], rel=0.05)
