"""The training loop, one for baselines, proxies and recovery; they differ in length and teacher only.

All that is random in a step (which images, which flips, a detector's own sampling) is a function of the
seed and the step, so a run that was killed and resumed equals one that was not.
"""

import copy
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from autoprune import progress
from autoprune.errors import TrainingError
from autoprune.policy import hash_weights
from autoprune.seeding import scoped, seed
from autoprune.training import ranks
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.distill import FeatureTap, Teacher
from autoprune.training.settings import TrainSettings

LOG_INTERVAL_S = 30.0


class TrainSplit(Protocol):
    """The part of `data.coco.Split` that training needs."""

    def __len__(self) -> int:
        """Number of images."""

    def batch(
        self, indices: Sequence[int], device: torch.device, flip: Sequence[bool] | None = None
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """Images, float [3, h, w] in [0, 1], and targets as torchvision's detectors take them."""


@dataclass(frozen=True)
class TrainResult:
    """What `train` returns.

    Attributes:
        model: the trained copy, in eval mode, on the device it was trained on.
        losses: total loss of each step.
    """

    model: nn.Module
    losses: tuple[float, ...]


def train(
    model: nn.Module,
    split: TrainSplit,
    settings: TrainSettings,
    device: torch.device | str,
    teacher: Teacher | None = None,
    checkpoint: Path | None = None,
    what: str = "recovery",
    checkpoint_interval_s: float = 30.0,
) -> TrainResult:
    """Trains a copy of a torchvision-style detector and returns the moving average of its weights.

    AdamW without decay on norms and biases, warm-up and cosine, gradient clipping, flips. The model may
    hold BatchNorm2d (trained with batch statistics) or FrozenBatchNorm2d (left alone). Under `torchrun` each
    process takes its fraction of a batch, and sums over images are those of one process; what a batch is
    normalised by (BatchNorm2d's statistics, the correlations of distillation) is each share's own.

    Args:
        model: called as ``model(images, targets)`` in training mode, gives a dict of losses. Not changed.
        split: training images.
        settings: length and strength.
        device: where to train.
        teacher: dense detector that is imitated, weighted by ``distill`` and ``distill_logits``.
        checkpoint: file to resume from and to write to; a finished run's file gives its result at once.
        what: name of the work, for the progress bar.
        checkpoint_interval_s: seconds between checkpoints.

    Raises:
        TrainingError: a loss or a gradient is not finite, or memory ran out.
        RunError: the checkpoint is of another run, or can't be written.
    """
    device = torch.device(device)
    model = ranks.broadcast_model(model, device)
    run = _Run(model, settings, device, teacher)
    identity = _identity(model, split, run) if checkpoint else {}
    if checkpoint and (found := Checkpoint.load(checkpoint, identity)):
        run.restore(found)
        progress.say(
            f"{what}: {run.step} of {settings.steps} steps are done already, goes on from {checkpoint}"
        )
    saved = logged = time.monotonic()
    steps = range(run.step, settings.steps)
    with scoped(settings.seed), _memory_errors(settings), run.tap:
        for step in progress.track(steps, what):
            loss = run.advance(split)
            now = time.monotonic()
            last = step + 1 == settings.steps
            if checkpoint and ranks.rank() == 0 and (last or now - saved >= checkpoint_interval_s):
                run.checkpoint(identity).save(checkpoint)
                saved = time.monotonic()
            if now - logged >= LOG_INTERVAL_S and not last:
                rate = settings.learning_rate_at(step)
                progress.say(f"{what}: step {step + 1}, loss {loss:.3f}, learning rate {rate:.2g}")
                logged = now
    return TrainResult(run.result(), tuple(run.losses))


class _Run:
    """The state of a training run: model, moving average, optimiser, step."""

    def __init__(
        self, model: nn.Module, settings: TrainSettings, device: torch.device, teacher: Teacher | None
    ) -> None:
        if settings.batch_size < ranks.count():
            raise TrainingError(
                f"batch_size is {settings.batch_size} for {ranks.count()} processes; raise it, so that each "
                "has an image"
            )
        self.settings, self.device = settings, device
        self.teacher = teacher if settings.distill or settings.distill_logits else None
        self.model = copy.deepcopy(model).to(device).to(memory_format=torch.channels_last).train()
        self.weights = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if not self.weights:
            raise TrainingError("the model has no weights to train: every parameter has requires_grad=False")
        self.average = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self.optimizer = torch.optim.AdamW(
            _decay_groups(self.weights, settings.weight_decay),
            lr=settings.learning_rate,
            fused=device.type in ("cpu", "cuda"),  # a third of the time of the other forms on a CPU
        )
        self.tap = FeatureTap(self.model, self.teacher)
        self.bf16 = settings.bf16 is not False and (
            device.type == "cuda" or bool(settings.bf16 and has_amx())
        )
        self.step = 0
        self.losses: list[float] = []

    def advance(self, split: TrainSplit) -> float:
        """Takes one optimiser step and returns its loss."""
        settings, step, rank = self.settings, self.step, ranks.rank()
        own = (rank,) if rank else ()
        torch.manual_seed(seed(settings.seed, "step", step, *own))  # a detector's own sampling, dropout
        indices, flips = draw(len(split), settings.batch_size, step, settings.seed)
        mine = slice(rank, None, ranks.count())
        images, targets = split.batch(indices[mine], self.device, flip=flips[mine])
        parts = self._losses(images, targets)
        total = torch.stack(list(parts.values())).sum()
        loss = total.item()
        rate = settings.learning_rate_at(step)
        if not math.isfinite(loss):
            found = ", ".join(f"{name} {value.item():.3g}" for name, value in parts.items())
            raise TrainingError(self._not_finite("loss", found, rate))
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        fraction = total * (len(images) / len(indices))  # detectors' losses are means over images
        torch.autograd.backward(fraction)
        loss = ranks.add_up(self.weights.values(), fraction.detach()).item()
        norm = nn.utils.clip_grad_norm_(self.weights.values(), settings.clip_norm).item()
        if not math.isfinite(norm):
            raise TrainingError(self._not_finite("gradient", f"loss {loss:.3g}", rate))
        self.optimizer.step()
        with torch.no_grad():
            new = 1 - settings.ema_decay_at(step)
            torch._foreach_lerp_(list(self.average.values()), list(self.weights.values()), new)
        self.step += 1
        self.losses.append(loss)
        return loss

    def _losses(self, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
        """The detector's losses, and those of ``distillation`` where there is a teacher; float32 scalars."""
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.bf16):
            parts: dict[str, Tensor] = dict(self.model(images, targets))
            if self.teacher is not None:
                weights = {"features": self.settings.distill, "logits": self.settings.distill_logits}
                for name, value in self.teacher.loss(self.tap.take()).items():
                    parts[f"distillation of {name}"] = weights[name] * value
        return {name: value.float() for name, value in parts.items()}

    def _not_finite(self, which: str, found: str, rate: float) -> str:
        return (
            f"the {which} is not finite at step {self.step + 1} of {self.settings.steps} (learning rate "
            f"{rate:.3g}; {found}); lower learning_rate or clip_norm, or check the boxes of the data"
        )

    def checkpoint(self, identity: dict[str, Any]) -> Checkpoint:
        """All that `restore` needs."""
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.items()}
        for name, weight in self.weights.items():
            for key, value in self.optimizer.state[weight].items():
                tensors[f"optimizer.{key}.{name}"] = value
        return Checkpoint(identity, self.step, self.losses, tensors)

    def restore(self, found: Checkpoint) -> None:
        """Takes up the run where ``found`` left it."""
        tensors = found.tensors
        state = {name: tensors[f"model.{name}"] for name in self.model.state_dict()}
        self.model.load_state_dict(state)
        for name, weight in self.weights.items():
            self.average[name].copy_(tensors[f"average.{name}"])
            moments = {
                key: torch.empty_like(weight).copy_(tensors[f"optimizer.{key}.{name}"])
                for key in ("exp_avg", "exp_avg_sq")
            }
            count = tensors[f"optimizer.step.{name}"].to(self.device)
            self.optimizer.state[weight] = {"step": count, **moments}
        self.step, self.losses = found.step, list(found.losses)

    def result(self) -> nn.Module:
        """The model with averaged weights, the last buffers, and tensors in the usual memory order."""
        if self.settings.ema_decay > 0:
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(self.average[name])
        self.model.zero_grad(set_to_none=True)
        self.model.to(memory_format=torch.contiguous_format)
        return self.model.eval()


def has_amx() -> bool:
    """Whether the CPU multiplies bfloat16 matrices in hardware; without, autocast is 4 to 9 times slower."""
    return bool(getattr(torch.cpu, "_is_amx_tile_supported", lambda: False)())


def draw(count: int, batch_size: int, step: int, master: int) -> tuple[list[int], list[bool]]:
    """Images and flips of a step: the epochs' shuffles one after the other, cut into batches.

    Args:
        count: images in the split.
        batch_size: images a step.
        step: 0, 1, …
        master: seed.

    Returns:
        ``batch_size`` indices below ``count``, and whether each image is flipped.
    """
    indices: list[int] = []
    flips: list[bool] = []
    position, end = step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, start = divmod(position, count)
        taken = min(count - start, end - position)
        random = np.random.default_rng(seed(master, "epoch", epoch))
        order, flipped = random.permutation(count), random.random(count) < 0.5
        indices += order[start : start + taken].tolist()
        flips += flipped[start : start + taken].tolist()
        position += taken
    return indices, flips


def _decay_groups(weights: dict[str, nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    """Two groups: weights of convolutions and linear layers, and norms and biases, which don't decay."""
    matrices = [weight for weight in weights.values() if weight.ndim > 1]
    vectors = [weight for weight in weights.values() if weight.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


def _identity(model: nn.Module, split: TrainSplit, run: _Run) -> dict[str, Any]:
    """What must be equal for a checkpoint to be continued."""
    return {
        **asdict(run.settings),
        "training images": len(split),
        "distillation": run.teacher is not None,
        "distillation weighted": run.teacher is not None and run.teacher.weighted,
        "tensors to train": len(run.weights),  # other norms would have more
        "start weights": hash_weights(model.state_dict()),
    }


@contextmanager
def _memory_errors(settings: TrainSettings) -> Iterator[None]:
    """Turns a failed allocation into a message that names the setting to lower."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        allocation = isinstance(error, MemoryError | torch.OutOfMemoryError)
        if not allocation and "can't allocate memory" not in str(error):
            raise
        raise TrainingError(
            f"out of memory at {settings.batch_size} images a step; lower batch_size, or give smaller images"
        ) from error
