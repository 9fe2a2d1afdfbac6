"""Scores the channels of a detector by criteria that are chosen by name."""

import difflib
from collections.abc import Callable, Sequence

import numpy as np
from torch import nn

from autoprune.errors import ConfigError, ModelError
from autoprune.graph import ChannelGraph
from autoprune.importance.criteria import CRITERIA
from autoprune.importance.gates import Batches
from autoprune.importance.gradients import score_by_gates
from autoprune.importance.reduce import Importance


def score(
    criterion: str, model: nn.Module, graph: ChannelGraph, batches: Batches | None = None, seed: int = 0
) -> Importance:
    """Scores every channel of every prunable group.

    Args:
        criterion: a key of `CRITERIA`.
        model: the dense detector; it is not changed.
        graph: its channel groups.
        batches: called for an iterable of (images, targets), float images in [0, 1] [3, h, w] and targets as
            torchvision's detectors take them; required by criteria with ``needs_data``.
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
    if batches is None and CRITERIA[criterion].needs_data:
        raise ConfigError(f"criterion `{criterion}` needs training images; give --data, or choose l2")
    importance = CRITERIA[criterion].function(model, graph, batches or (lambda: ()), seed)
    _check_finite(criterion, importance)
    return importance


def score_together(
    criteria: Sequence[str],
    model: nn.Module,
    graph: ChannelGraph,
    batches: Batches,
    seed: int = 0,
    keep: Callable[[str, Importance], None] | None = None,
) -> dict[str, Importance]:
    """Scores by several criteria; those that rest on gate gradients share one pass over the images.

    Args:
        criteria: keys of `CRITERIA`.
        model: the dense detector; it is not changed.
        graph: its channel groups.
        batches: see `score`.
        seed: see `score`.
        keep: takes the scores of each criterion once they are finished.

    Returns:
        {criterion: {group: float64 [width]}}, each what `score` gives for it.

    Raises:
        ModelError: a score is not finite (names the group), or the model returns no losses.
    """
    records = {criterion: CRITERIA[criterion] for criterion in criteria}
    rules = {name: record.from_gates for name, record in records.items() if record.from_gates is not None}
    by_gates = score_by_gates(rules, model, graph, batches, seed) if rules else {}
    scores: dict[str, Importance] = {}
    for name in (*by_gates, *(each for each in criteria if each not in by_gates)):
        if name in by_gates:
            _check_finite(name, by_gates[name])
        scores[name] = by_gates[name] if name in by_gates else score(name, model, graph, batches, seed)
        if keep is not None:
            keep(name, scores[name])
    return {name: scores[name] for name in criteria}


def _check_finite(criterion: str, importance: Importance) -> None:
    for name, scores in importance.items():
        if not np.isfinite(scores).all():
            cause = "the loss or its gradients are" if CRITERIA[criterion].needs_data else "the weights are"
            raise ModelError(
                f"criterion `{criterion}` is not finite on group `{name}`: {cause} not; "
                "check the weights with `autoprune eval`"
            )
