"""Importance: scores of every channel of every group, by one of several criteria."""

from autoprune.importance.cache import check_readable, damaged, load, origin_of, save, settings_hash
from autoprune.importance.criteria import CRITERIA, Criterion, comparable, in_loss_units
from autoprune.importance.curves import CURVES
from autoprune.importance.gates import Batches
from autoprune.importance.reduce import Importance, most_important, per_unit
from autoprune.importance.score import score, score_together

__all__ = [
    "CRITERIA",
    "CURVES",
    "Batches",
    "Criterion",
    "Importance",
    "check_readable",
    "comparable",
    "damaged",
    "in_loss_units",
    "load",
    "most_important",
    "origin_of",
    "per_unit",
    "save",
    "score",
    "score_together",
    "settings_hash",
]
