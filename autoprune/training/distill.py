"""Feature distillation: the pruned detector imitates the dense one's FPN outputs.

PKD (Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation
Coefficient", NeurIPS 2022): the distance of two feature maps is one minus the Pearson correlation of each
channel over batch and positions, so neither scale nor offset of the teacher's features must be matched.
"""

import copy
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph

CHILD = "backbone"  # the child module whose outputs are imitated; every torchvision detector has it
EPSILON = 1e-6


def has_features(model: nn.Module) -> bool:
    """Whether ``model`` has the child module whose outputs can be distilled."""
    return isinstance(getattr(model, CHILD, None), nn.Module)


def correlation_distance(student: Tensor, teacher: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean over channels of one minus the Pearson correlation.

    Computed as PKD does, ``mean((normalised student - normalised teacher)²) / 2``. A channel that is
    constant has no correlation and counts 0.5.

    Args:
        student: features [n, c, h, w].
        teacher: features of the same shape.
        weights: weight of each channel [c], with mean 1; ``None`` means all equal.

    Returns:
        A scalar in [0, 2], float32.
    """
    distance = (_normalised(student) - _normalised(teacher)).square().mean(dim=1) / 2
    return (distance if weights is None else distance * weights).mean()


def _normalised(features: Tensor) -> Tensor:
    """Each channel over batch and positions, [c, n·h·w], with zero mean and unit variance."""
    flat = features.float().transpose(0, 1).flatten(1)
    centred = flat - flat.mean(dim=1, keepdim=True)
    return centred / (centred.square().mean(dim=1, keepdim=True) + EPSILON**2).sqrt()


class Teacher:
    """The dense detector's features, cut down to the channels that a policy keeps."""

    def __init__(
        self,
        dense: nn.Module,
        graph: ChannelGraph,
        keep: Mapping[str, Sequence[int]],
        weights: Mapping[str, np.ndarray[Any, Any]] | None = None,
    ) -> None:
        """Finds which channels of the dense features each channel of the student's is.

        Args:
            dense: dense detector; not changed. It must have a ``backbone`` child.
            graph: channel graph of ``dense``.
            keep: kept channels of each pruned group.
            weights: importance of each channel of a group [width], to weight the channels of the loss
                with; ``None`` weights all channels alike.

        Raises:
            ModelError: the detector has no ``backbone``, or the graph does not know its outputs.
        """
        if not has_features(dense) or not graph.features.get(CHILD):
            raise ModelError(
                f"distillation needs a detector with a `{CHILD}` child that gives feature maps, "
                f"{type(dense).__name__} has none; set distill to 0"
            )
        backbone: nn.Module = getattr(dense, CHILD)
        self._backbone = copy.deepcopy(backbone).eval().requires_grad_(False)
        self._backbone.to(memory_format=torch.channels_last)  # a third less time on a CPU
        outputs = graph.features[CHILD]
        self._kept = [_kept_positions(group, index, keep) for group, index in outputs]
        self._weights = [
            None if weights is None else _channel_weights(group, index[kept], weights)
            for (group, index), kept in zip(outputs, self._kept, strict=True)
        ]

    def loss(self, student_features: Sequence[Tensor], images: Tensor) -> Tensor:
        """Sum over the outputs of `correlation_distance`, as in PKD.

        Args:
            student_features: outputs of the student's backbone [n, c_k, h_k, w_k].
            images: what the student's backbone got [n, 3, h, w].

        Raises:
            ModelError: the student's widths are not those of ``keep``.
        """
        targets = self._features(images)
        pairs = zip(student_features, targets, self._weights, strict=True)
        distances = [correlation_distance(ours, theirs, weight) for ours, theirs, weight in pairs]
        return torch.stack(distances).sum()

    @torch.no_grad()
    def _features(self, images: Tensor) -> list[Tensor]:
        """The dense detector's outputs for ``images``, kept channels only."""
        if next(self._backbone.parameters()).device != images.device:
            self._backbone.to(images.device)
            self._weights = [None if w is None else w.to(images.device) for w in self._weights]
        features = feature_maps(self._backbone(images))
        return [
            maps[:, torch.as_tensor(kept, device=maps.device)]
            for maps, kept in zip(features, self._kept, strict=True)
        ]


class FeatureTap:
    """Catches what goes into and comes out of the backbone, inside a ``with`` block."""

    def __init__(self, model: nn.Module | None) -> None:
        """Listens to ``model``; ``None`` makes a tap that does nothing."""
        self._model = model
        self._caught: tuple[list[Tensor], Tensor] | None = None

    def __enter__(self) -> "FeatureTap":
        """Begins to listen."""
        if self._model is not None:
            self._handle = getattr(self._model, CHILD).register_forward_hook(self._catch)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stops listening."""
        if self._model is not None:
            self._handle.remove()
        self._caught = None

    def take(self) -> tuple[list[Tensor], Tensor]:
        """Feature maps and input [n, 3, h, w] of the last forward pass."""
        if self._caught is None:
            raise RuntimeError("no forward pass went through the backbone")
        caught, self._caught = self._caught, None
        return caught

    def _catch(self, module: nn.Module, args: tuple[Tensor, ...], output: Any) -> None:
        self._caught = feature_maps(output), args[0]


def feature_maps(output: Any) -> list[Tensor]:
    """The 4-D tensors of a module's output (a tensor, or a dict or sequence of them), in order."""
    if isinstance(output, Tensor):
        return [output] if output.ndim == 4 else []
    parts = output.values() if isinstance(output, Mapping) else output
    return [tensor for part in parts for tensor in feature_maps(part)]


def _kept_positions(
    group: str | None, index: np.ndarray[Any, Any], keep: Mapping[str, Sequence[int]]
) -> np.ndarray[Any, Any]:
    """Positions on a feature map's channel axis that remain after pruning, rising."""
    if group is None or group not in keep:
        return np.arange(len(index))
    return np.flatnonzero((index < 0) | np.isin(index, np.asarray(keep[group])))


def _channel_weights(
    group: str | None, channels: np.ndarray[Any, Any], weights: Mapping[str, np.ndarray[Any, Any]]
) -> Tensor | None:
    """Weights [kept channels] with mean 1: the channels' importance; the mean where it is not known."""
    if group is None or group not in weights or not (channels >= 0).any():
        return None
    known = channels >= 0
    values = np.asarray(weights[group], dtype=np.float64)[np.maximum(channels, 0)]
    values = np.where(known, values, values[known].mean())
    if not np.isfinite(values).all() or (values < 0).any() or values.sum() <= 0:
        return None
    return torch.as_tensor(values / values.mean(), dtype=torch.float32)
