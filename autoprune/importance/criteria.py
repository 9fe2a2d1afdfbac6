"""The table of criteria. To add one, add a record here and its name to `fields.Criterion`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import nn

from autoprune.graph import ChannelGraph
from autoprune.importance import gradients, weights
from autoprune.importance.curves import CURVES
from autoprune.importance.gates import Batches
from autoprune.importance.gradients import GateRule
from autoprune.importance.obs import obs
from autoprune.importance.reduce import Importance


@dataclass(frozen=True)
class Criterion:
    """A rule that scores every channel of every prunable group.

    Attributes:
        function: (model, graph, batches, seed) -> {prunable group: float64 [width]}, none negative, the more
            important the higher. It changes neither the model nor the graph.
        needs_data: it calls ``batches`` for (images, targets) pairs; the others get an empty one.
        loss_units: scores estimate a change of the loss, so they compare across groups as they are, and can
            be weighed against cost.
        from_gates: set where a group's scores follow from its gate gradients alone; such criteria share one
            pass over the images.
        one_shot: how the one-shot method that is published with this criterion ranks channels of all groups:
            ``global`` by score per channel, ``greedy`` by score per cost. It becomes a warm start of searches
            by other criteria.
    """

    function: Callable[[nn.Module, ChannelGraph, Batches, int], Importance]
    needs_data: bool = False
    loss_units: bool = False
    from_gates: GateRule | None = None
    one_shot: Literal["global", "greedy"] | None = None


def gate_criterion(rule: GateRule, one_shot: Literal["global", "greedy"] | None = None) -> Criterion:
    """A criterion in units of the loss whose scores ``rule`` makes of gate gradients."""

    def function(model: nn.Module, graph: ChannelGraph, batches: Batches, seed: int) -> Importance:
        return gradients.score_by_gates({"": rule}, model, graph, batches, seed)[""]

    return Criterion(function, needs_data=True, loss_units=True, from_gates=rule, one_shot=one_shot)


CRITERIA: dict[str, Criterion] = {
    "l1": Criterion(lambda model, graph, _batches, _seed: weights.l1(model, graph)),
    "l2": Criterion(lambda model, graph, _batches, _seed: weights.l2(model, graph), one_shot="global"),
    "bn_scale": Criterion(lambda model, graph, _batches, _seed: weights.bn_scale(model, graph)),
    "taylor": gate_criterion(gradients.taylor, one_shot="global"),
    "fisher": gate_criterion(gradients.fisher, one_shot="greedy"),
    "joint": gate_criterion(gradients.joint),
    "obs": Criterion(obs, needs_data=True, loss_units=True),
    "random": Criterion(lambda _model, graph, _batches, seed: weights.random(graph, seed)),
}


def in_loss_units(criterion: str) -> bool:
    """Whether scores by a criterion, or those made of curves, estimate a change of the loss."""
    return criterion == CURVES or CRITERIA[criterion].loss_units


def comparable(importance: Mapping[str, NDArray[np.float64]], criterion: str) -> Importance:
    """Scores that can be ranked across groups.

    Those in units of the loss stay as they are. Sizes of weights depend on the layer's fan-in and on where
    its norm put the scale, so a group's scores are divided by their mean (a group of zeros stays zeros).

    Args:
        importance: {group: [width]}.
        criterion: a key of `CRITERIA` or `CURVES`, by which the channels were scored.

    Returns:
        {group: float64 [width]}.
    """
    if in_loss_units(criterion):
        return {name: np.asarray(scores, dtype=np.float64) for name, scores in importance.items()}
    return {name: scores / (float(np.mean(scores)) or 1.0) for name, scores in importance.items()}
