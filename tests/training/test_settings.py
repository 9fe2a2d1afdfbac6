import math

import pytest
import torch
from torch import nn

from autoprune.config import make_config
from autoprune.errors import ConfigError
from autoprune.training import TrainSettings


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


def test_a_short_run_is_not_dragged_back_to_its_start() -> None:
    """After 20 steps the start weighs nothing, and the first half less than 2%."""
    settings = TrainSettings(20, ema_decay=0.999)
    assert math.prod(settings.ema_decay_at(step) for step in range(10, 20)) < 0.02
    assert math.prod(settings.ema_decay_at(step) for step in range(20)) < 1e-6


def test_settings_come_from_the_config() -> None:
    config = make_config(steps=70, batch_size=3, learning_rate=0.5, ema_decay=0.2, distill=2.0, seed=9)
    settings = TrainSettings.from_config(config, steps=20)
    assert (settings.steps, settings.batch_size, settings.learning_rate) == (20, 3, 0.5)
    assert (settings.ema_decay, settings.distill, settings.seed) == (0.2, 2.0, 9)
    assert TrainSettings.from_config(config).steps == 70
    with pytest.raises(ConfigError, match="steps must be at least 1, not 0"):
        TrainSettings(0)
    everything = make_config(
        steps=7,
        batch_size=2,
        learning_rate=0.1,
        weight_decay=0.2,
        warmup=0.3,
        clip_norm=0.4,
        ema_decay=0.5,
        distill=0.6,
        distill_logits=0.7,
        seed=8,
        augment=True,
        precision="bfloat16",
    )
    expected = TrainSettings(7, 2, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 8, True, True)
    assert TrainSettings.from_config(everything) == expected
