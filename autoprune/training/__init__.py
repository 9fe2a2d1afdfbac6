"""One training loop for baselines, proxies and recovery."""

from autoprune.training.distill import Teacher
from autoprune.training.loop import TrainResult, train
from autoprune.training.recalibrate import recalibrate
from autoprune.training.reconstruct import Reconstructor
from autoprune.training.settings import TrainSettings

__all__ = [
    "Reconstructor",
    "Teacher",
    "TrainResult",
    "TrainSettings",
    "recalibrate",
    "train",
]
