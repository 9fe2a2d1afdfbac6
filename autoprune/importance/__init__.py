"""Criteria: rules that score every channel of every group."""

import difflib
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from autoprune.errors import ConfigError, ModelError
from autoprune.graph import ChannelGraph
from autoprune.importance import gradients, weights
from autoprune.importance.cache import load, save, settings_hash
from autoprune.importance.gradients import Batches
from autoprune.importance.reduce import Importance, comparable, per_cost, per_unit

__all__ = [
    "CRITERIA",
    "NEEDS_DATA",
    "Batches",
    "Importance",
    "comparable",
    "load",
    "per_cost",
    "per_unit",
    "save",
    "score",
    "score_together",
    "settings_hash",
]

# A criterion is a function (model, graph, batches, seed) -> {prunable group: float64 [width]}, none negative,
# the more important the higher. It changes neither the model nor the graph. Those in NEEDS_DATA call
# batches() for (images, targets) pairs in torchvision's form; the others get an empty one.
CRITERIA: dict[str, Callable[[nn.Module, ChannelGraph, Batches, int], Importance]] = {
    "l1": lambda model, graph, _batches, _seed: weights.l1(model, graph),
    "l2": lambda model, graph, _batches, _seed: weights.l2(model, graph),
    "bn_scale": lambda model, graph, _batches, _seed: weights.bn_scale(model, graph),
    "taylor": gradients.taylor,
    "fisher": gradients.fisher,
    "joint": gradients.joint,
    "random": lambda _model, graph, _batches, seed: weights.random(graph, seed),
}
NEEDS_DATA = frozenset({"taylor", "fisher", "joint"})


def score(
    criterion: str, model: nn.Module, graph: ChannelGraph, batches: Batches | None = None, seed: int = 0
) -> Importance:
    """Scores every channel of every prunable group.

    Args:
        criterion: a name in `CRITERIA`.
        model: the dense detector; it is not changed.
        graph: its channel groups.
        batches: called for an iterable of (images, targets), float images in [0, 1] [3, h, w] and targets as
            torchvision's detectors take them; needed by the criteria in `NEEDS_DATA`.
        seed: for `random`, and for what a detector samples while it computes its loss.

    Returns:
        {group: float64 [width]}; the higher, the more important.

    Raises:
        ConfigError: there is no such criterion, or it needs data and got none.
        ModelError: a score is not finite (names the group), or the model returns no losses.
    """
    if criterion not in CRITERIA:
        near = difflib.get_close_matches(criterion, CRITERIA, n=3) or list(CRITERIA)
        raise ConfigError(f"there is no criterion `{criterion}`; choose {', '.join(near)}")
    if batches is None and criterion in NEEDS_DATA:
        raise ConfigError(f"criterion `{criterion}` needs training images; give --data, or choose l2")
    importance = CRITERIA[criterion](model, graph, batches or (lambda: ()), seed)
    _refuse_infinite(criterion, importance)
    return importance


def score_together(
    criteria: Sequence[str], model: nn.Module, graph: ChannelGraph, batches: Batches, seed: int = 0
) -> dict[str, Importance]:
    """Scores by several criteria; those in `NEEDS_DATA` share one pass over the images.

    Args:
        criteria: names in `CRITERIA`.
        model: the dense detector; it is not changed.
        graph: its channel groups.
        batches: see `score`.
        seed: see `score`.

    Returns:
        {criterion: {group: float64 [width]}}, each what `score` gives for it.

    Raises:
        ModelError: a score is not finite (names the group), or the model returns no losses.
    """
    asked = [criterion for criterion in criteria if criterion in NEEDS_DATA]
    found = gradients.together(asked, model, graph, batches, seed) if asked else {}
    for criterion, importance in found.items():
        _refuse_infinite(criterion, importance)
    return {
        criterion: found[criterion] if criterion in found else score(criterion, model, graph, batches, seed)
        for criterion in criteria
    }


def _refuse_infinite(criterion: str, importance: Importance) -> None:
    for name, scores in importance.items():
        if not np.isfinite(scores).all():
            cause = "the loss or its gradients are" if criterion in NEEDS_DATA else "the weights are"
            raise ModelError(
                f"criterion `{criterion}` is not finite on group `{name}`: {cause} not; "
                "check the weights with `autoprune eval`"
            )
