import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn
from torchvision.ops import FrozenBatchNorm2d

from autoprune.config import make_config
from autoprune.errors import ConfigError, RunError, TrainingError
from autoprune.training import TrainSettings, train
from autoprune.training.loop import draw

CPU = torch.device("cpu")


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class KilledError(Exception):
    """Stands for a `kill -9` in the middle of a step."""


class DyingSplit:
    """Hands out batches of another split until it dies."""

    def __init__(self, split: Any, lifetime: int) -> None:
        self.split, self.left = split, lifetime

    def __len__(self) -> int:
        return len(self.split)

    def batch(self, indices: Sequence[int], device: torch.device, flip: Any = None) -> Any:
        if self.left == 0:
            raise KilledError
        self.left -= 1
        return self.split.batch(indices, device, flip=flip)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0.1), (50, 0.0), (40, 0.5), (7, 0.3)])
def test_the_learning_rate_is_that_of_torchs_schedulers(steps: int, warmup: float) -> None:
    settings = TrainSettings(steps, learning_rate=0.3, warmup=warmup)
    rising = round(warmup * steps)
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.3)
    scheduler = torch.optim.lr_scheduler.SequentialLR(
        optimizer,
        [
            torch.optim.lr_scheduler.LinearLR(optimizer, 1 / (rising + 1), 1.0, max(rising, 1)),
            torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps - rising),
        ],
        [rising],
    )
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert [settings.learning_rate_at(step) for step in range(steps)] == pytest.approx(rates, abs=1e-12)


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


def test_a_short_run_is_not_dragged_back_to_its_start() -> None:
    """After 20 steps the start weighs nothing, and the first half less than two per cent."""
    settings = TrainSettings(20, ema_decay=0.999)
    assert math.prod(settings.ema_decay_at(step) for step in range(10, 20)) < 0.02
    assert math.prod(settings.ema_decay_at(step) for step in range(20)) < 1e-6


def test_a_step_is_adamw_on_the_clipped_gradient(toy: nn.Module, split: Any) -> None:
    """Against AdamW's update, written out: its first step is lr · sign(g) up to epsilon, and the decay."""
    toy.dropout.p = 0.0
    settings = TrainSettings(
        1, batch_size=4, learning_rate=0.01, weight_decay=0.5, warmup=0, ema_decay=0, clip_norm=1e-3
    )
    trained = train(toy, split, settings, CPU).model
    manual = copy.deepcopy(toy).train()
    indices, flips = split.asked[0]
    sum(manual(*split.batch(indices, CPU, flips)).values()).backward()
    norm = torch.cat([p.grad.flatten() for p in manual.parameters()]).norm()
    assert norm > 1e-3
    for name, weight in manual.named_parameters():
        gradient = weight.grad * 1e-3 / (norm + 1e-6)
        decay = 0.5 if weight.ndim > 1 else 0.0
        expected = weight * (1 - 0.01 * decay) - 0.01 * gradient / (gradient.abs() + 1e-8)
        torch.testing.assert_close(trained.get_parameter(name), expected, rtol=1e-4, atol=1e-4)


def test_training_lowers_the_loss_and_leaves_the_input_alone(toy: nn.Module, split: Any) -> None:
    toy.eval()
    before = state(toy)
    result = train(toy, split, TrainSettings(60, batch_size=5, learning_rate=0.02), CPU)
    assert sum(result.losses[-10:]) < 0.5 * sum(result.losses[:10])
    assert same(before, state(toy))
    assert not toy.training
    assert not any(module.training for module in result.model.modules())
    assert all(p.grad is None for p in [*toy.parameters(), *result.model.parameters()])
    assert all(value.is_contiguous() for value in result.model.state_dict().values())


def test_seeds_repeat_and_differ(toy: nn.Module, split: Any) -> None:
    settings = [TrainSettings(5, batch_size=4, seed=seed) for seed in (3, 3, 4)]
    torch.manual_seed(11)
    outside = torch.random.get_rng_state()
    results = []
    for each in settings:
        results.append(state(train(toy, split, each, CPU).model))
        torch.rand(1)  # what happened outside does not matter
        torch.random.set_rng_state(outside)
    assert same(results[0], results[1])
    assert not same(results[0], results[2])


def test_the_random_state_outside_is_left_alone(toy: nn.Module, split: Any) -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    train(toy, split, TrainSettings(2, batch_size=2), CPU)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("dies_at", [1, 6])
def test_a_resumed_run_equals_an_uninterrupted_one(
    toy: nn.Module, split: Any, tmp_path: Path, dies_at: int
) -> None:
    settings = TrainSettings(9, batch_size=4, learning_rate=0.01, ema_decay=0.7)
    whole = train(toy, split, settings, CPU)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        train(toy, DyingSplit(split, dies_at), settings, CPU, checkpoint=file, checkpoint_interval_s=0)
    second = DyingSplit(split, 9 - dies_at)
    resumed = train(toy, second, settings, CPU, checkpoint=file)
    assert second.left == 0
    assert same(state(whole.model), state(resumed.model))
    assert whole.losses == resumed.losses
    again = train(toy, DyingSplit(split, 0), settings, CPU, checkpoint=file)  # finished: takes no step
    assert same(state(whole.model), state(again.model))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_resumed_retinanet_equals_an_uninterrupted_one(
    tiny_retinanet: Any, image_split: Any, tmp_path: Path
) -> None:
    model = tiny_retinanet(nn.BatchNorm2d)
    settings = TrainSettings(3, batch_size=2)
    whole = train(model, image_split, settings, CPU)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        train(model, DyingSplit(image_split, 2), settings, CPU, checkpoint=file, checkpoint_interval_s=0)
    resumed = train(model, image_split, settings, CPU, checkpoint=file)
    assert same(state(whole.model), state(resumed.model))


def test_a_checkpoint_of_another_run_is_refused(toy: nn.Module, split: Any, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    train(toy, split, TrainSettings(2, batch_size=2), CPU, checkpoint=file)
    with pytest.raises(RunError, match=r"learning_rate was 0\.0003, now 0\.1"):
        train(toy, split, TrainSettings(2, batch_size=2, learning_rate=0.1), CPU, checkpoint=file)
    with torch.no_grad():
        toy.head.bias.add_(1)
    with pytest.raises(RunError, match="start weights was"):
        train(toy, split, TrainSettings(2, batch_size=2), CPU, checkpoint=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="delete it"):
        train(toy, split, TrainSettings(2, batch_size=2), CPU, checkpoint=file)


def test_a_loss_that_is_not_finite_names_the_step(toy: nn.Module, split: Any) -> None:
    split.images[:] = torch.nan
    with pytest.raises(TrainingError, match=r"loss is not finite at step 1 of 4 .*box nan.*learning_rate"):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


def test_a_gradient_that_is_not_finite_is_found(toy: nn.Module, split: Any) -> None:
    toy.head.register_full_backward_hook(lambda *_: (torch.full((2, 6), torch.inf),))
    with pytest.raises(TrainingError, match="gradient is not finite at step 1 of 4"):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory_names_the_setting_to_lower(toy: nn.Module, split: Any, error: Exception) -> None:
    def fail(*_: Any) -> None:
        raise error

    toy.register_forward_pre_hook(fail)
    with pytest.raises(TrainingError, match="2 images a step; lower batch_size"):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


def test_frozen_norms_stay_as_they_are(tiny_retinanet: Any, image_split: Any) -> None:
    model = tiny_retinanet(FrozenBatchNorm2d)
    for module in model.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_mean.uniform_(-1, 1)
            module.running_var.uniform_(0.5, 2)
    trained = train(model, image_split, TrainSettings(2, batch_size=2, warmup=0), CPU).model
    before, buffers = state(model), dict(model.named_buffers())
    assert len(buffers) == 60  # four each of 15 norms: fewer would compare nothing
    assert all(torch.equal(trained.get_buffer(name), before[name]) for name in buffers)
    assert not torch.equal(trained.backbone.body.conv1.weight, model.backbone.body.conv1.weight)


def test_weights_that_need_no_gradient_stay_as_they_are(toy: nn.Module, split: Any) -> None:
    toy.backbone.conv1.requires_grad_(False)
    trained = train(toy, split, TrainSettings(3, batch_size=2, learning_rate=0.1), CPU).model
    assert torch.equal(trained.backbone.conv1.weight, toy.backbone.conv1.weight)
    assert not trained.backbone.conv1.weight.requires_grad
    assert not torch.equal(trained.head.weight, toy.head.weight)
    with pytest.raises(TrainingError, match="requires_grad"):
        train(toy.requires_grad_(False), split, TrainSettings(3), CPU)


def test_a_two_stage_detector_trains_and_repeats(image_split: Any) -> None:
    """Its sampling of proposals is random, and follows the seed."""
    model = fasterrcnn_mobilenet_v3_large_320_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=64,
        max_size=64,
        rpn_pre_nms_top_n_train=50,
    )
    results = [train(model, image_split, TrainSettings(1, batch_size=2), CPU) for _ in range(2)]
    assert results[0].losses == results[1].losses
    assert same(state(results[0].model), state(results[1].model))


def test_bfloat16_is_used_only_where_the_cpu_has_it(
    toy: nn.Module, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = {}
    for asked, amx in [(None, True), (True, False), (True, True), (False, True)]:
        monkeypatch.setattr("autoprune.training.loop.has_amx", lambda amx=amx: amx)
        losses[asked, amx] = train(toy, split, TrainSettings(2, batch_size=2, bf16=asked), CPU).losses
    assert losses[None, True] == losses[True, False] == losses[False, True]
    assert losses[True, True] != losses[None, True]
    assert losses[True, True] == pytest.approx(losses[None, True], rel=0.05)


def test_every_epoch_shows_every_image_once() -> None:
    drawn = [draw(10, 4, step, 7) for step in range(10)]
    indices = [index for step, _ in drawn for index in step]
    flips = [flip for _, step in drawn for flip in step]
    epochs = [indices[start : start + 10] for start in range(0, 40, 10)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert 5 < sum(flips) < 35
    longer = draw(3, 8, 0, 7)[0]  # a batch of more images than there are
    assert sorted(longer[:3]) == sorted(longer[3:6]) == [0, 1, 2]
    assert len(longer) == 8


def test_settings_come_from_the_config() -> None:
    config = make_config(steps=70, batch_size=3, learning_rate=0.5, ema_decay=0.2, distill=2.0, seed=9)
    settings = TrainSettings.from_config(config, steps=20)
    assert (settings.steps, settings.batch_size, settings.learning_rate) == (20, 3, 0.5)
    assert (settings.ema_decay, settings.distill, settings.seed) == (0.2, 2.0, 9)
    assert TrainSettings.from_config(config).steps == 70
    with pytest.raises(ConfigError, match="steps must be at least 1, not 0"):
        TrainSettings(0)
