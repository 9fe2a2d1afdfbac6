"""Distillation: the pruned detector imitates the dense one's FPN outputs and what its head predicts from.

Features as in PKD (Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient", NeurIPS 2022): the distance of two feature maps is one minus the Pearson correlation
of each channel over batch and positions, so neither scale nor offset of the teacher's features must be
matched. Logits as binary problems, as in BCKD (Yang et al., "Bridging Cross-task Protocol Inconsistency for
Distillation in Dense Object Detection", ICCV 2023): a one-stage head scores each class by itself.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph
from autoprune.graph.groups import kept_positions
from autoprune.training.capture import Captured, Tap

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
        dense: dense detector; not changed. Its feature maps must be known; see `detectors.parts`.
        graph: channel graph of ``dense``.
        keep: kept channels of each pruned group.
        weights: importance of each channel of a group [width], to weight the channels of the loss with;
            ``None`` weights all channels equally.
        logits: whether to distill the class logits too.
        head: whether to distill what the head's prediction layers read; see `parts.prediction_inputs`.

    Attributes:
        layers: those prediction layers.

    Raises:
        ModelError: no feature maps of the detector are known, or its class logits are not.
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
        from autoprune.detectors.parts import find_parts, prediction_inputs  # slow: torchvision

        parts = find_parts(dense, graph)
        if parts is None:
            raise ModelError(
                f"distillation needs feature maps, and none of {type(dense).__name__} are known; name the "
                "modules that return them in its attribute `features`, or set distill to 0"
            )
        self.weighted = weights is not None
        self.logits = logits and bool(parts.logits)
        self._parts = parts
        read = prediction_inputs(graph, parts) if head else {}
        self._kept_inputs = {
            layer: torch.as_tensor(kept_positions(group, index, keep))
            for layer, (group, index) in read.items()
            if len(keep.get(group, index))  # an emptied group leaves no channel to compare
        }
        self.layers = tuple(self._kept_inputs)
        self._dense = parts.layers(dense, head=self.logits or bool(self.layers)).requires_grad_(False)
        self._dense.to(memory_format=torch.channels_last)  # a third less time on a CPU
        outputs = parts.features
        positions = [kept_positions(group, index, keep) for group, index in outputs]
        self._kept = [torch.as_tensor(kept) for kept in positions]
        self._weights = [
            None if weights is None else _channel_weights(group, index[kept], weights)
            for (group, index), kept in zip(outputs, positions, strict=True)
        ]
        self._device: torch.device | None = None  # of what is compared, once that is known

    def tap(self, student: nn.Module) -> Tap:
        """What captures all that `loss` needs of a student."""
        return Tap(student, self._parts, self.logits, self.layers)

    def loss(self, captured: Captured) -> dict[str, Tensor]:
        """The student's distance from the dense detector on the same images.

        Args:
            captured: the student's forward pass.

        Returns:
            ``features``, the sum over the outputs of `correlation_distance` as in PKD; ``head``, the sum over
            the prediction layers of its mean over their calls; and ``logits``, their `logit_distance`: the
            last two where they are distilled.

        Raises:
            ModelError: the feature maps differ in size, or the detector's head gives no class logits.
        """
        self._move(captured.features[0].device)
        theirs = self._forward(captured.batch)
        kept_maps = zip(theirs.features, self._kept, strict=True)
        targets = [_select(maps, kept) for maps, kept in kept_maps]
        if [m.shape for m in targets] != [m.shape for m in captured.features]:
            raise ModelError(
                "distillation needs the same feature maps of the same images twice, and in training mode the "
                "detector resizes in another way or makes others; set distill to 0"
            )
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
            parts["logits"] = logit_distance(_flat(captured.logits), _flat(theirs.logits))
        return parts

    def _move(self, device: torch.device) -> None:
        """Brings all that is compared to the device, once: a step copies nothing from the host."""
        if self._device == device:
            return
        self._dense.to(device)
        self._kept = [kept.to(device) for kept in self._kept]
        self._kept_inputs = {layer: kept.to(device) for layer, kept in self._kept_inputs.items()}
        self._weights = [None if weights is None else weights.to(device) for weights in self._weights]
        self._device = device

    @torch.no_grad()
    def _forward(self, batch: Any) -> Captured:
        """What the dense detector computes of the same batch."""
        with Tap(self._dense, self._parts, self.logits, self.layers, batch=False) as tap:
            self._parts.run(self._dense, batch)
            return tap.take()


def _flat(logits: Sequence[Tensor]) -> Tensor:
    return torch.cat([each.flatten() for each in logits])


def _select(maps: Tensor, kept: Tensor) -> Tensor:
    """The kept channels of feature maps [n, c, h, w]."""
    return maps[:, kept]


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
