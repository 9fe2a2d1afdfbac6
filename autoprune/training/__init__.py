"""One training loop for baselines, proxies and recovery."""

from autoprune.training.distill import Teacher
from autoprune.training.loop import TrainResult, TrainSettings, train
from autoprune.training.recalibrate import recalibrate

__all__ = ["Teacher", "TrainResult", "TrainSettings", "recalibrate", "train"]
