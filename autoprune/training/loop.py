"""The training loop, one for baselines, proxies and recovery; they differ in length and teacher only."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from autoprune import progress
from autoprune.errors import out_of_memory
from autoprune.seeding import scoped
from autoprune.training import distributed
from autoprune.training.batches import TrainSplit, loaded_ahead
from autoprune.training.checkpoint import Checkpoint
from autoprune.training.distill import Teacher
from autoprune.training.settings import TrainSettings
from autoprune.training.state import TrainingState

LOG_INTERVAL_S = 30.0
CHECKPOINT_INTERVAL_S = 5.0
"""Between checkpoints at least, so that a short training is not lost; more where writing one takes long."""
WRITING = 0.02  # of the time, at most


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
    after_step: Callable[[TrainingState], None] | None = None,
    checkpoint_interval_s: float = 30.0,
    start_id: str | None = None,
) -> TrainResult:
    """Trains a copy of a torchvision-style detector and returns the moving average of its weights.

    AdamW without decay on norms and biases, warm-up and cosine, gradient clipping, flips, and more
    augmentation where it is set. Images are loaded ahead of the steps that need them. The model may
    hold BatchNorm2d (trained with batch statistics) or FrozenBatchNorm2d (unchanged). Under `torchrun` each
    process takes its fraction of a batch, and sums over images are those of one process; what a batch is
    normalized by (BatchNorm2d's statistics, the correlations of distillation) is that of each fraction.

    Args:
        model: called as ``model(images, targets)`` in training mode, gives a dict of losses. Not changed.
        split: training images.
        settings: length and strength.
        device: where to train.
        teacher: dense detector that is imitated, weighted by ``distill`` and ``distill_logits``.
        checkpoint: file to resume from and to write to; a finished run's file gives its result at once.
        what: name of the work, for the progress bar.
        after_step: called after each step, in each process; it must change neither state nor random numbers.
        checkpoint_interval_s: seconds between checkpoints at most; see `checkpoint_pause_s`.
        start_id: by what a checkpoint knows the weights of ``model`` again, where these are computed and
            another machine computes other last digits; ``None`` takes a hash of them.

    Raises:
        TrainingError: a loss or a gradient is not finite, memory ran out, there are more processes than
            images in a batch, or no weights to train.
        ModelError: the model does not return losses in training mode.
        RunError: the checkpoint is of another run, or can't be written.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM; with a checkpoint, it says what is kept.
    """
    device = torch.device(device)
    model = distributed.broadcast_model(model, device)
    state = TrainingState(model, settings, device, teacher)
    identity = state.identity(model, split, start_id) if checkpoint else {}
    if checkpoint and (saved := Checkpoint.load(checkpoint, identity)):
        state.resume_from(saved)
        progress.say(f"{what}: {state.step} of {settings.steps} steps done, resumes from {checkpoint}")
    saved_at = logged_at = time.monotonic()
    pause_s = checkpoint_pause_s(0.0, checkpoint_interval_s)
    steps, kept = range(state.step, settings.steps), state.step
    at = f"at {settings.batch_size} images per step"
    with (
        scoped(settings.seed),
        out_of_memory(at, "lower batch_size, or use smaller images"),
        state.tap,
        _saying_what_is_kept(what, checkpoint, lambda: kept),
        loaded_ahead(split, settings, device, state.step) as batches,
    ):
        for step in progress.track(steps, what):
            loss = state.advance(*next(batches))
            if after_step is not None:
                after_step(state)
            now = time.monotonic()
            last = step + 1 == settings.steps
            if checkpoint and distributed.rank() == 0 and (last or now - saved_at >= pause_s):
                state.checkpoint(identity).save(checkpoint)
                saved_at, kept = time.monotonic(), state.step
                pause_s = checkpoint_pause_s(saved_at - now, checkpoint_interval_s)
            if now - logged_at >= LOG_INTERVAL_S and not last:
                rate = settings.learning_rate_at(step)
                progress.say(f"{what}: step {step + 1}, loss {loss:.3f}, learning rate {rate:.2g}")
                logged_at = now
    return TrainResult(state.result(), tuple(state.losses))


def checkpoint_pause_s(writing_s: float, longest_s: float) -> float:
    """Seconds until the next checkpoint: `CHECKPOINT_INTERVAL_S`, or more where that costs too much time.

    Args:
        writing_s: what writing one takes.
        longest_s: wait no longer, whatever it costs.
    """
    return min(longest_s, max(CHECKPOINT_INTERVAL_S, writing_s / WRITING))


@contextmanager
def _saying_what_is_kept(what: str, checkpoint: Path | None, steps: Callable[[], int]) -> Iterator[None]:
    """Makes an interrupt say how many steps the checkpoint holds."""
    try:
        yield
    except KeyboardInterrupt:
        if checkpoint is None:
            raise
        kept = f"{steps()} steps of it are kept in {checkpoint}, and the same command resumes it"
        nothing = "nothing of it is kept yet; the same command starts it again"
        raise KeyboardInterrupt(f"{what} stopped: {kept if steps() else nothing}") from None
