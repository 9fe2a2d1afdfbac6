"""Length and strength of a training run, and the learning rate and averaging of each step."""

import math
from dataclasses import dataclass, fields
from typing import Any

from autoprune.config import Config
from autoprune.errors import ConfigError

PRECISIONS: dict[str, bool | None] = {"auto": None, "float32": False, "bfloat16": True}
"""`Config.precision` → ``bf16``."""

EARLIER: dict[str, Any] = {"augment": False}
"""Fields that checkpoints and recoveries of version 0.1.0 lack, with what these did."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; see `Config` for the fields of the same names.

    Attributes:
        augment: scale jitter, crop and color beside the flips; see `images.augment`.
        bf16: bfloat16 autocast; ``None`` on CUDA only, ``True`` on CPUs with AMX too, which halves the time.
            Elsewhere it is float32.
    """

    steps: int
    batch_size: int = 8
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    warmup: float = 0.1
    clip_norm: float = 1.0
    ema_decay: float = 0.99
    distill: float = 1.0
    distill_logits: float = 0.0
    seed: int = 0
    augment: bool = False
    bf16: bool | None = None

    def __post_init__(self) -> None:
        """Rejects lengths and batch sizes below 1."""
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")

    @classmethod
    def from_config(cls, config: Config, **changes: Any) -> "TrainSettings":
        """The settings of ``config`` but for ``changes``; without a learning rate, that of a baseline."""
        names = [field.name for field in fields(cls) if field.name != "bf16"]
        values = {name: getattr(config, name) for name in names}
        values["bf16"] = PRECISIONS[config.precision]
        if config.learning_rate is None:
            del values["learning_rate"]
        return cls(**{**values, **changes})

    def learning_rate_at(self, step: int) -> float:
        """Learning rate of step 0, 1, …: a linear rise over ``warmup · steps``, then half a cosine to 0."""
        rising = min(round(self.warmup * self.steps), self.steps - 1)
        if step < rising:
            return self.learning_rate * (step + 1) / (rising + 1)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - rising) / (self.steps - rising)))

    def ema_decay_at(self, step: int) -> float:
        """Decay of the moving average at step 0, 1, …: ``min(ema_decay, (1 + step) / (10 + step))``.

        The average then spans about the last tenth of a short run, so that the start has no weight in it.
        """
        return min(self.ema_decay, (1 + step) / (10 + step))
