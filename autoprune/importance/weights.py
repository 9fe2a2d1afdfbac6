"""Criteria that read the weights alone: no data, no gradients."""

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autoprune.graph import ChannelGraph, ChannelGroup
from autoprune.importance.reduce import Importance, add_at
from autoprune.seeding import seed as scoped_seed


def l1(model: nn.Module, graph: ChannelGraph) -> Importance:
    """Sum of |w| over every weight that produces the channel (Li et al., ICLR 2017).

    Coupled layers add up; biases and norms do not count.
    """
    tensors = _tensors(model)
    return {name: _row_sums(group, tensors, torch.abs) for name, group in graph.prunable.items()}


def l2(model: nn.Module, graph: ChannelGraph) -> Importance:
    """Euclidean norm of all weights that produce the channel, coupled layers summed in squares.

    The group norm of DepGraph (Fang et al., CVPR 2023), over producers only.
    """
    tensors = _tensors(model)
    return {name: np.sqrt(_row_sums(group, tensors, torch.square)) for name, group in graph.prunable.items()}


def bn_scale(model: nn.Module, graph: ChannelGraph) -> Importance:
    """Mean |gamma| of the norms on the channel (network slimming, Liu et al., ICCV 2017).

    FrozenBatchNorm2d's weight buffer and GroupNorm's weight count as well. A group without a norm takes its
    `l2` scores, scaled so that their mean is the mean |gamma| of all groups that have one (1 where none has).
    """
    tensors = _tensors(model)
    scores: Importance = {}
    for name, group in graph.prunable.items():
        total, count = np.zeros(group.width), np.zeros(group.width)
        for (tensor, _, index), role in zip(group.members, group.roles, strict=True):
            if role == "norm" and tensor.rpartition(".")[2] == "weight":
                total += add_at(index, _double(tensors[tensor].abs()), group.width)
                count += add_at(index, np.ones(len(index)), group.width)
        if count.all():
            scores[name] = total / count
    if len(scores) < len(graph.prunable):
        mean_gamma = float(np.mean(np.concatenate(list(scores.values())))) if scores else 1.0
        for name, norms in l2(model, graph).items():
            scores.setdefault(name, norms * (mean_gamma / (float(norms.mean()) or 1.0)))
    return {name: scores[name] for name in graph.prunable}


def random(graph: ChannelGraph, seed: int) -> Importance:
    """Uniform noise in [0, 1), a function of ``seed`` and the group's name: the baseline of all criteria."""
    return {
        name: np.random.default_rng(scoped_seed(seed, "importance", name)).random(group.width)
        for name, group in graph.prunable.items()
    }


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their first names, as in groups; a state dict lacks some buffers."""
    return dict([*model.named_parameters(), *model.named_buffers()])


def _row_sums(
    group: ChannelGroup,
    tensors: dict[str, torch.Tensor],
    size: Callable[[torch.Tensor], torch.Tensor],
) -> NDArray[np.float64]:
    """Sum of ``size(w)`` over the group's producing weights, per channel [width]."""
    scores = np.zeros(group.width)
    for (tensor, axis, index), role in zip(group.members, group.roles, strict=True):
        weight = tensors[tensor]
        if role == "producer" and weight.ndim > 1:
            rows = size(weight.detach().double()).movedim(axis, 0).reshape(weight.shape[axis], -1).sum(1)
            scores += add_at(index, _double(rows), group.width)
    return scores


def _double(tensor: torch.Tensor) -> NDArray[np.float64]:
    values: NDArray[np.float64] = tensor.detach().double().cpu().numpy()
    return values
