"""Distillation: the pruned detector imitates the dense one's FPN outputs and what its head predicts from.

Features as in PKD (Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient", NeurIPS 2022): the distance of two feature maps is one minus the Pearson correlation
of each channel over batch and positions, so neither scale nor offset of the teacher's features must be
matched. Logits as binary problems, as in BCKD (Yang et al., "Bridging Cross-task Protocol Inconsistency for
Distillation in Dense Object Detection", ICCV 2023): a one-stage head scores each class by itself.
"""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph
from autoprune.graph.groups import Index, kept_positions
from autoprune.training.capture import (
    CHILD,
    HEAD,
    Captured,
    Tap,
    class_logits,
    feature_maps,
    has_features,
    prediction_inputs,
    recording_inputs,
)

EPSILON = 1e-6


def logit_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Kullback-Leibler divergence of each logit's Bernoulli distribution from the teacher's, summed.

    In units of the teacher's expected number of positives, Σ sigmoid(teacher), as a focal loss is in those
    of the true ones: most anchors are background by both, and add next to nothing.

    Args:
        student: class logits [n, anchors, classes].
        teacher: logits of the same shape.

    Returns:
        A scalar from 0, float32.
    """
    ours, theirs = student.float(), teacher.float()
    target = theirs.sigmoid()
    cross = F.binary_cross_entropy_with_logits(ours, target, reduction="sum")
    entropy = F.binary_cross_entropy_with_logits(theirs, target, reduction="sum")
    return (cross - entropy) / target.sum().clamp(min=1e-6)


def correlation_distance(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over channels of one minus the Pearson correlation.

    Computed as PKD does, ``mean((normalized student - normalized teacher)²) / 2``. A channel that is
    constant has no correlation and counts as 0.5.

    Args:
        student: features [n, c, h, w].
        teacher: features of the same shape.
        weights: weight of each channel [c], with mean 1; ``None`` means all equal.

    Returns:
        A scalar in [0, 2], float32.
    """
    distance = (_normalized(student) - _normalized(teacher)).square().mean(dim=1) / 2
    return (distance if weights is None else distance * weights).mean()


def _normalized(features: Tensor) -> Tensor:
    """Each channel over batch and positions, [c, n·h·w], with zero mean and unit variance."""
    flat = features.float().transpose(0, 1).flatten(1)
    centered = flat - flat.mean(dim=1, keepdim=True)
    return centered / (centered.square().mean(dim=1, keepdim=True) + EPSILON**2).sqrt()


class Teacher:
    """What the dense detector computes, reduced to the channels that a policy keeps.

    Args:
        dense: dense detector; not changed. It must have a ``backbone`` child.
        graph: channel graph of ``dense``.
        keep: kept channels of each pruned group.
        weights: importance of each channel of a group [width], to weight the channels of the loss with;
            ``None`` weights all channels equally.
        logits: whether to distill the class logits of the head too; see `capture.has_head`.
        head: whether to distill what the head's prediction layers read; see `capture.prediction_inputs`.

    Attributes:
        layers: those prediction layers.

    Raises:
        ModelError: the detector has no ``backbone``, or the graph has no feature maps of it.
    """

    def __init__(
        self,
        dense: nn.Module,
        graph: ChannelGraph,
        keep: Mapping[str, Sequence[int]],
        weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
        logits: bool = False,
        head: bool = False,
    ) -> None:
        if not has_features(dense) or not graph.features.get(CHILD):
            raise ModelError(
                f"distillation needs a detector with a `{CHILD}` child that gives feature maps, "
                f"{type(dense).__name__} has none; set distill to 0"
            )
        self.weighted = weights is not None
        self.logits = logits
        read = prediction_inputs(graph) if head else {}
        self._kept_inputs = {
            layer: kept_positions(group, index, keep)
            for layer, (group, index) in read.items()
            if len(keep.get(group, index))  # an emptied group leaves no channel to compare
        }
        self.layers = tuple(self._kept_inputs)
        self._layers = nn.ModuleDict({CHILD: getattr(dense, CHILD)})
        if logits or self.layers:
            self._layers[HEAD] = getattr(dense, HEAD)
        self._layers = copy.deepcopy(self._layers).eval().requires_grad_(False)
        self._layers.to(memory_format=torch.channels_last)  # a third less time on a CPU
        outputs = graph.features[CHILD]
        self._kept = [kept_positions(group, index, keep) for group, index in outputs]
        self._weights = [
            None if weights is None else _channel_weights(group, index[kept], weights)
            for (group, index), kept in zip(outputs, self._kept, strict=True)
        ]

    def tap(self, student: nn.Module) -> Tap:
        """What captures all that `loss` needs of a student."""
        return Tap(student, features=True, logits=self.logits, layers=self.layers)

    def loss(self, captured: Captured) -> dict[str, Tensor]:
        """The student's distance from the dense detector on the same images.

        Args:
            captured: the student's forward pass.

        Returns:
            ``features``, the sum over the outputs of `correlation_distance` as in PKD; ``head``, the sum over
            the prediction layers of its mean over their calls; and ``logits``, their `logit_distance`: the
            last two where they are distilled.

        Raises:
            ModelError: the detector's head gives no class logits.
        """
        images = captured.images
        if next(self._layers.parameters()).device != images.device:
            self._layers.to(images.device)
            self._weights = [None if w is None else w.to(images.device) for w in self._weights]
        theirs = self._forward(images)
        kept_maps = zip(theirs.features, self._kept, strict=True)
        targets = [_select(maps, kept) for maps, kept in kept_maps]
        pairs = zip(captured.features, targets, self._weights, strict=True)
        parts = {"features": torch.stack([correlation_distance(*pair) for pair in pairs]).sum()}
        if self.layers:
            parts["head"] = torch.stack(
                [
                    correlation_distance(ours, _select(dense, self._kept_inputs[layer])) / len(calls)
                    for layer, calls in theirs.inputs.items()
                    for ours, dense in zip(captured.inputs[layer], calls, strict=True)
                ]
            ).sum()
        if self.logits:
            assert captured.logits is not None
            assert theirs.logits is not None
            parts["logits"] = logit_distance(captured.logits, theirs.logits)
        return parts

    @torch.no_grad()
    def _forward(self, images: Tensor) -> Captured:
        """What the dense detector computes of these images [n, 3, h, w]."""
        features = feature_maps(self._layers[CHILD](images))
        if HEAD not in self._layers:
            return Captured(images, features)
        inputs: dict[str, list[Tensor]] = {}
        with recording_inputs(self._layers[HEAD], self.layers, inputs):
            output = self._layers[HEAD](features)
        return Captured(images, features, class_logits(output) if self.logits else None, inputs)


def _select(maps: Tensor, kept: Index) -> Tensor:
    """The kept channels of feature maps [n, c, h, w]."""
    return maps[:, torch.as_tensor(kept, device=maps.device)]


def _channel_weights(
    group: str | None, channels: np.ndarray[Any, Any], weights: Mapping[str, np.ndarray[Any, Any]]
) -> Tensor | None:
    """Weights [kept channels] with mean 1: the channels' importance; the mean for those of no group."""
    if group is None or group not in weights or not (channels >= 0).any():
        return None
    member = channels >= 0
    values = np.asarray(weights[group], dtype=np.float64)[np.maximum(channels, 0)]
    values = np.where(member, values, values[member].mean())
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        return None
    return torch.as_tensor(values / values.mean(), dtype=torch.float32)
