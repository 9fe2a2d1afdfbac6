import io
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_mobilenet_v3_large_320_fpn

from autoprune import progress
from autoprune.errors import ModelError, RunError, TrainingError
from autoprune.training import TrainSettings, loop, train
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.state import TrainingState

from .conftest import ToyDetector

CPU = torch.device("cpu")


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


class KilledError(Exception):
    """Stands for a `kill -9` in the middle of a step."""


class DyingSplit:
    """Hands out so many batches of another split until it dies; images are taken in one thread, in order."""

    def __init__(
        self, split: Any, batches: int, batch_size: int, end: type[BaseException] = KilledError
    ) -> None:
        self.split, self.remaining, self.end = split, batches * batch_size, end
        self.fingerprint = split.fingerprint

    def __len__(self) -> int:
        return len(self.split)

    def get(self, index: int) -> Any:
        if self.remaining == 0:
            raise self.end
        self.remaining -= 1
        return self.split.get(index)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("autoprune.images.prefetch.threads", lambda: 1)


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


def test_what_is_called_after_each_step_sees_the_average_and_changes_nothing(
    tiny_retinanet: Any, image_split: Any
) -> None:
    """The average of the last step is what a training returns; an earlier one differs."""
    model, settings = tiny_retinanet(nn.BatchNorm2d), TrainSettings(3, batch_size=2, learning_rate=0.01)
    seen = []

    def record(now: TrainingState) -> None:
        seen.append((now.step, state(now.averaged(model))))

    plain = train(model, image_split, settings, CPU)
    watched = train(model, image_split, settings, CPU, after_step=record)
    assert [step for step, _ in seen] == [1, 2, 3]
    assert same(state(plain.model), state(watched.model))
    assert same(seen[-1][1], state(watched.model))
    assert not same(seen[0][1], seen[1][1])


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
    toy: nn.Module, split: Any, tmp_path: Path, one_thread: None, dies_at: int
) -> None:
    settings = TrainSettings(9, batch_size=4, learning_rate=0.01, ema_decay=0.7)
    whole = train(toy, split, settings, CPU)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        train(toy, DyingSplit(split, dies_at, 4), settings, CPU, checkpoint=file, checkpoint_interval_s=0)
    second = DyingSplit(split, 9 - dies_at, 4)
    resumed = train(toy, second, settings, CPU, checkpoint=file)
    assert second.remaining == 0
    assert same(state(whole.model), state(resumed.model))
    assert whole.losses == resumed.losses
    again = train(toy, DyingSplit(split, 0, 4), settings, CPU, checkpoint=file)  # finished: takes no step
    assert same(state(whole.model), state(again.model))
    assert [path.name for path in tmp_path.iterdir()] == [file.name]


def test_a_resumed_retinanet_equals_an_uninterrupted_one(
    tiny_retinanet: Any, image_split: Any, tmp_path: Path, one_thread: None
) -> None:
    model = tiny_retinanet(nn.BatchNorm2d)
    settings = TrainSettings(3, batch_size=2)
    whole = train(model, image_split, settings, CPU)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        train(model, DyingSplit(image_split, 2, 2), settings, CPU, checkpoint=file, checkpoint_interval_s=0)
    resumed = train(model, image_split, settings, CPU, checkpoint=file)
    assert same(state(whole.model), state(resumed.model))


@pytest.mark.parametrize(
    ("writing_s", "expected"),
    [(0.0, [2, 4, 6, 8, 10, 12]), (0.2, [2, 6, 10, 12]), (60.0, [2, 12])],
    ids=["cheap", "2% of the time", "dear, yet every 30 s"],
)
def test_checkpoints_are_written_every_few_seconds_unless_that_takes_long(
    toy: nn.Module,
    split: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    writing_s: float,
    expected: list[int],
) -> None:
    """Of 12 steps of 3 s each: a short training, too, resumes from near where it was killed."""
    clock, written = SimpleNamespace(now=0.0), []

    def save(self: Checkpoint, path: Path) -> None:
        written.append(self.step)
        clock.now += writing_s

    def pass_time(state: TrainingState) -> None:
        clock.now += 3.0

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: clock.now))
    monkeypatch.setattr(Checkpoint, "save", save)
    file = tmp_path / "c.safetensors"
    train(toy, split, TrainSettings(12, batch_size=2), CPU, checkpoint=file, after_step=pass_time)
    assert written == expected


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
    with pytest.raises(TrainingError, match="2 images per step; lower batch_size"):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


@pytest.mark.parametrize(
    ("interval_s", "said"),
    [
        (0, "2 steps of it are kept in {}, and the same command resumes it"),
        (1e9, "nothing of it is kept yet; the same command starts it again"),
    ],
)
def test_an_interrupt_says_what_is_kept_and_prints_nothing(
    toy: nn.Module, split: Any, tmp_path: Path, one_thread: None, interval_s: float, said: str
) -> None:
    file, lines = tmp_path / "c.safetensors", io.StringIO()
    dying, settings = DyingSplit(split, 2, 4, KeyboardInterrupt), TrainSettings(5, batch_size=4)
    with progress.show(Console(file=lines, width=400)), pytest.raises(KeyboardInterrupt) as interrupt:
        train(toy, dying, settings, CPU, checkpoint=file, checkpoint_interval_s=interval_s)
    assert str(interrupt.value) == f"recovery stopped: {said.format(file)}"
    assert lines.getvalue() == ""
    assert file.exists() is (interval_s == 0)


def test_a_detector_without_losses_is_refused_by_name(toy: nn.Module, split: Any) -> None:
    toy.register_forward_hook(lambda *_: [])
    with pytest.raises(
        ModelError, match=r"^ToyDetector must return a dict of losses in training mode, not list"
    ):
        train(toy, split, TrainSettings(4, batch_size=2), CPU)


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


class LateDetector(ToyDetector):
    """Has a layer that no loss reads, one that is read from the fourth call on, and randomness."""

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.late = nn.Linear(3, 3), nn.Linear(6, 1)
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, images: list[Tensor], targets: Any = None) -> Any:
        losses = super().forward(images, targets)
        if self.training:
            self.calls += 1
            losses["box"] = losses["box"] * (random.random() + np.random.rand())
            if self.calls > 3:
                losses["late"] = self.late(self.head.weight).square().mean()
        return losses


@pytest.mark.parametrize("dies_at", [2, 5])
def test_layers_without_gradients_and_all_random_numbers_resume(
    split: Any, tmp_path: Path, one_thread: None, dies_at: int
) -> None:
    torch.manual_seed(0)
    model, settings = LateDetector(), TrainSettings(7, batch_size=2, learning_rate=0.01)
    whole = train(model, split, settings, CPU)
    file = tmp_path / "checkpoint.safetensors"
    with pytest.raises(KilledError):
        train(model, DyingSplit(split, dies_at, 2), settings, CPU, checkpoint=file, checkpoint_interval_s=0)
    resumed = train(model, split, settings, CPU, checkpoint=file)
    assert whole.losses == resumed.losses
    assert same(state(whole.model), state(resumed.model))
    assert same(state(model.unused), state(resumed.model.unused))
    assert not same(state(model.late), state(resumed.model.late))


def test_a_start_that_is_known_by_an_id_may_differ_in_its_last_digits(
    toy: nn.Module, split: Any, tmp_path: Path, one_thread: None
) -> None:
    settings, file = TrainSettings(4, batch_size=2), tmp_path / "checkpoint.safetensors"
    whole = train(toy, split, settings, CPU)
    with pytest.raises(KilledError):
        train(
            toy,
            DyingSplit(split, 3, 2),
            settings,
            CPU,
            checkpoint=file,
            checkpoint_interval_s=0,
            start_id="a",
        )
    with torch.no_grad():
        toy.head.bias.add_(1e-6)
    for other in (None, "b"):
        with pytest.raises(RunError, match="start weights was 'a', now"):
            train(toy, split, settings, CPU, checkpoint=file, start_id=other)
    resumed = train(toy, split, settings, CPU, checkpoint=file, start_id="a")
    assert resumed.losses == whole.losses
    assert same(state(whole.model), state(resumed.model))
