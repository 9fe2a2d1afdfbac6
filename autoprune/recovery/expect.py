"""What mAP a recovery expects to end at, from its first tenth.

After a tenth, at the end of the warm-up, the mAP has hardly moved, but the detection loss has: the fraction
of its rise by pruning that is left then says what fraction of the lost mAP is still lost at the end. See
"What a recovery expects" in docs/benchmarks.md, which also has the rules that are worse.
"""

from collections.abc import Callable
from typing import NamedTuple

from torch import nn

from autoprune.progress import say
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import PruningTask
from autoprune.training import distributed
from autoprune.training.settings import TrainSettings
from autoprune.training.state import TrainingState

REMAINING = 0.75  # of the fraction of the loss's rise that is left after a tenth
ERROR = 0.04  # four of five recoveries end within it
LEAST_STEPS = 100  # the shortest that the rule was measured on
MOST_COST = 0.05  # of the training


class Expected(NamedTuple):
    """The mAP that a recovery expects to end at, a fraction; four of five end from ``low`` to ``high``."""

    map: float
    low: float
    high: float


class Pair(NamedTuple):
    """A score of the dense detector, and of the pruned one before it is trained."""

    dense: float
    untrained: float


def expect(maps: Pair, losses: Pair, loss: float) -> Expected | None:
    """The mAP at the end: ``dense - REMAINING · remaining · (dense - untrained)``.

    There ``remaining`` is the fraction of the loss's rise that is left, (loss - dense) / (untrained - dense).
    It is not below the untrained mAP, since the better of both is kept, nor above the dense one.

    Args:
        maps: mAP before the training.
        losses: detection loss before the training.
        loss: detection loss after a tenth of it.

    Returns:
        ``None`` where the rule does not apply: the pruned detector has lost no mAP, its loss has not risen,
        or after a tenth is below the dense detector's, so that it does not tell good detectors apart.
    """
    if maps.untrained >= maps.dense or losses.untrained <= losses.dense or loss < losses.dense:
        return None
    remaining = (loss - losses.dense) / (losses.untrained - losses.dense)
    end = maps.dense - REMAINING * remaining * (maps.dense - maps.untrained)
    values = (end, end - ERROR, end + ERROR)
    return Expected(*(min(max(value, maps.untrained), maps.dense) for value in values))


def affordable(settings: TrainSettings, images: int) -> bool:
    """Whether three passes over ``images`` cost at most `MOST_COST` of the training.

    Training on an image costs three passes at least, one forward and two backward.
    """
    return images <= MOST_COST * settings.steps * settings.batch_size


def expecting(
    task: PruningTask,
    start: nn.Module,
    maps: Pair,
    settings: TrainSettings,
    tell: Callable[[Expected], None],
) -> Callable[[TrainingState], None] | None:
    """What `train` calls after each step to tell, after a tenth of them, what mAP to expect.

    It takes the loss of the untrained, the trained and the dense detector on the images of a `Probe`, and
    changes nothing. Nothing is told where the detector gives no loss, or where `expect` can tell nothing.

    Args:
        task: dense detector and data, both at its own input size: losses at two sizes don't compare.
        start: the pruned detector before it is trained.
        maps: mAP on the validation split.
        settings: how it is trained.
        tell: gets what is expected.

    Returns:
        ``None`` where the training is too short for the rule or for the cost.
    """
    probe = Probe(task)
    if settings.steps < LEAST_STEPS or not affordable(settings, len(probe.image_ids)):
        return None

    def after_step(state: TrainingState) -> None:
        if state.step != _tenth(settings):
            return
        # in each process: the losses of some libraries add up numbers of all of them, and would wait
        losses = [probe.loss(model) for model in (task.model, start, state.averaged(start))]
        dense, untrained, now = losses
        if dense is None or untrained is None or now is None or distributed.rank() > 0:
            return
        expected = expect(maps, Pair(dense, untrained), now)
        if expected is not None:
            tell(expected)

    return after_step


def say_expected(label: str, settings: TrainSettings, expected: Expected) -> None:
    """Prints what is expected, above the bar of the training."""
    end, low, high = (f"{100 * value:.1f}" for value in expected)
    after = f"after {_tenth(settings)} of {settings.steps} steps"
    say(f"{label}: {after} it expects to end at mAP {end}, {low} to {high} (four of five do)", above_bar=True)


def _tenth(settings: TrainSettings) -> int:
    return round(settings.steps / 10)
