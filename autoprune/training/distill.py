"""Distillation: the pruned detector imitates the dense one's FPN outputs, and its class logits.

Features as in PKD (Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson
Correlation Coefficient", NeurIPS 2022): the distance of two feature maps is one minus the Pearson correlation
of each channel over batch and positions, so neither scale nor offset of the teacher's features must be
matched. Logits as binary problems, as in BCKD (Yang et al., "Bridging Cross-task Protocol Inconsistency for
Distillation in Dense Object Detection", ICCV 2023): a one-stage head scores each class by itself.
"""

import copy
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph
from autoprune.graph.groups import kept_positions

CHILD = "backbone"  # the child module whose outputs are imitated; every torchvision detector has it
HEAD = "head"  # the child that makes predictions of all feature maps; every one-stage torchvision detector's
LOGITS = "cls_logits"  # its output with the class scores [n, anchors, classes]
EPSILON = 1e-6


def has_features(model: nn.Module) -> bool:
    """Whether ``model`` has the child module whose outputs can be distilled."""
    return isinstance(getattr(model, CHILD, None), nn.Module)


def has_logits(model: nn.Module) -> bool:
    """Whether ``model`` has a one-stage head whose class logits can be distilled."""
    return has_features(model) and isinstance(getattr(model, HEAD, None), nn.Module)


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


@dataclass(frozen=True)
class Captured:
    """What a forward pass of a detector computed.

    Attributes:
        images: the backbone's input [n, 3, h, w].
        features: the backbone's outputs [n, c_k, h_k, w_k].
        logits: the head's class logits [n, anchors, classes]; ``None`` where they are not distilled.
    """

    images: Tensor
    features: list[Tensor]
    logits: Tensor | None = None


class Teacher:
    """The dense detector's features, reduced to the channels that a policy keeps, and its class logits.

    Args:
        dense: dense detector; not changed. It must have a ``backbone`` child.
        graph: channel graph of ``dense``.
        keep: kept channels of each pruned group.
        weights: importance of each channel of a group [width], to weight the channels of the loss with;
            ``None`` weights all channels equally.
        logits: whether to distill the class logits too; see `has_logits`.

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
    ) -> None:
        if not has_features(dense) or not graph.features.get(CHILD):
            raise ModelError(
                f"distillation needs a detector with a `{CHILD}` child that gives feature maps, "
                f"{type(dense).__name__} has none; set distill to 0"
            )
        self.weighted = weights is not None
        self.logits = logits
        self._layers = nn.ModuleDict({CHILD: getattr(dense, CHILD)})
        if logits:
            self._layers[HEAD] = getattr(dense, HEAD)
        self._layers = copy.deepcopy(self._layers).eval().requires_grad_(False)
        self._layers.to(memory_format=torch.channels_last)  # a third less time on a CPU
        outputs = graph.features[CHILD]
        self._kept = [kept_positions(group, index, keep) for group, index in outputs]
        self._weights = [
            None if weights is None else _channel_weights(group, index[kept], weights)
            for (group, index), kept in zip(outputs, self._kept, strict=True)
        ]

    def loss(self, captured: Captured) -> dict[str, Tensor]:
        """The student's distance from the dense detector on the same images.

        Args:
            captured: the student's forward pass.

        Returns:
            ``features``, the sum over the outputs of `correlation_distance` as in PKD, and ``logits``, their
            `logit_distance`, where these are distilled.

        Raises:
            ModelError: the detector's head gives no class logits.
        """
        images = captured.images
        if next(self._layers.parameters()).device != images.device:
            self._layers.to(images.device)
            self._weights = [None if w is None else w.to(images.device) for w in self._weights]
        with torch.no_grad():
            features = feature_maps(self._layers[CHILD](images))
        targets = [
            maps[:, torch.as_tensor(kept, device=maps.device)]
            for maps, kept in zip(features, self._kept, strict=True)
        ]
        pairs = zip(captured.features, targets, self._weights, strict=True)
        distances = [correlation_distance(ours, theirs, weight) for ours, theirs, weight in pairs]
        parts = {"features": torch.stack(distances).sum()}
        if self.logits:
            assert captured.logits is not None
            with torch.no_grad():
                theirs = class_logits(self._layers[HEAD](features))
            parts["logits"] = logit_distance(captured.logits, theirs)
        return parts


class FeatureTap:
    """Captures what a teacher compares, inside a ``with`` block.

    Args:
        model: the student.
        teacher: says what to capture; ``None`` makes a tap that does nothing.
    """

    def __init__(self, model: nn.Module, teacher: Teacher | None) -> None:
        self._model, self._teacher = model, teacher
        self._stack = ExitStack()
        self._features: tuple[Tensor, list[Tensor]] | None = None
        self._logits: Tensor | None = None

    def __enter__(self) -> "FeatureTap":
        """Adds the hooks."""
        hooks = {CHILD: self._capture_features, HEAD: self._capture_logits}
        names = [] if self._teacher is None else [CHILD, *([HEAD] if self._teacher.logits else [])]
        for name in names:
            handle = getattr(self._model, name).register_forward_hook(hooks[name])
            self._stack.callback(handle.remove)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Removes the hooks."""
        self._stack.close()
        self._features = self._logits = None

    def take(self) -> Captured:
        """The last forward pass."""
        if self._features is None:
            raise RuntimeError("no forward pass went through the backbone")
        captured = Captured(*self._features, self._logits)
        self._features = self._logits = None
        return captured

    def _capture_features(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        self._features = args[0], feature_maps(output)

    def _capture_logits(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._logits = class_logits(output)


def class_logits(output: Any) -> Tensor:
    """The class logits [n, anchors, classes] in what a head returns.

    Raises:
        ModelError: there are none.
    """
    logits = output.get(LOGITS) if isinstance(output, Mapping) else None
    if not isinstance(logits, Tensor):
        raise ModelError(f"the detector's `{HEAD}` gives no `{LOGITS}` to distill; set distill_logits to 0")
    return logits


def feature_maps(output: Any) -> list[Tensor]:
    """The 4-D tensors of a module's output (a tensor, or a dict or sequence of them), in order."""
    if isinstance(output, Tensor):
        return [output] if output.ndim == 4 else []
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in feature_maps(part)]


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
