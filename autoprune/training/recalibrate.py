"""BatchNorm recalibration: the dense detector's statistics no longer fit a pruned one's activations."""

import copy
from collections.abc import Callable, Collection
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from autoprune.seeding import random_subset
from autoprune.seeding import seed as derive
from autoprune.training.batches import TrainSplit


@torch.no_grad()
def recalibrate(
    model: nn.Module,
    split: TrainSplit,
    images: int,
    batch_size: int,
    device: torch.device | str,
    seed: int,
    behind: Collection[str] | None = None,
) -> nn.Module:
    """Returns a copy whose BatchNorm statistics are the averages over training images.

    Each batch counts equally (`momentum=None`, cumulative averaging); only BatchNorm modules are in
    training mode, so dropout stays off. Weights are not changed.

    Args:
        model: a detector; not changed. With no BatchNorm (FrozenBatchNorm2d, GroupNorm) it is only copied.
        split: training images.
        images: how many of them to use; with 0 the statistics stay.
        batch_size: images in a forward pass; batches differ in size by one at most.
        device: where to run; the copy stays there.
        seed: decides which images.
        behind: convolutions and linear layers; only the norms that run next after one of them are
            recalibrated. ``None`` recalibrates all.

    Returns:
        The copy, in eval mode.
    """
    device = torch.device(device)
    recalibrated = copy.deepcopy(model).to(device).eval()
    norms = [
        module
        for module in recalibrated.modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    ]
    count = min(images, len(split))
    if behind is not None and norms and count:
        norms = _next_after(behind, norms, recalibrated, split.batch([0], device)[0])
    if not norms or not count:
        return recalibrated
    recalibrated.to(memory_format=torch.channels_last)  # a third less time on a CPU
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    forward = _shortest_forward(recalibrated, norms)
    chosen = random_subset(len(split), count, derive(seed, "recalibration"))
    for indices in np.array_split(chosen, -(-count // batch_size)):
        forward(split.batch(indices.tolist(), device)[0])
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return recalibrated.to(memory_format=torch.contiguous_format)


def _next_after(
    layers: Collection[str], norms: list[_BatchNorm], model: nn.Module, images: list[Tensor]
) -> list[_BatchNorm]:
    """Those of the norms that run next after one of the layers, by a forward pass."""
    following: list[_BatchNorm] = []
    last = ""

    def note(name: str, module: nn.Module, _: tuple[Any, ...]) -> None:
        nonlocal last
        if isinstance(module, nn.Conv2d | nn.Linear):
            last = name
        elif last in layers and module in norms and module not in following:
            following.append(module)

    handles = [
        module.register_forward_pre_hook(partial(note, name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear | _BatchNorm)
    ]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    return following


def _shortest_forward(model: nn.Module, norms: list[_BatchNorm]) -> Callable[[list[Tensor]], Any]:
    """A call that passes every norm: transform and backbone where these hold them all, else the model.

    It saves the heads and their post-processing, which is more than half of a RetinaNet.
    """
    from autoprune.detectors.inputs import prepared  # slow: torchvision
    from autoprune.detectors.parts import BACKBONE

    backbone = getattr(model, BACKBONE, None)
    if not isinstance(backbone, nn.Module) or not set(norms) <= set(backbone.modules()):
        return model

    def forward(images: list[Tensor]) -> Any:
        given = prepared(model, images)
        return model(images) if given is None else backbone(given[0].tensors)

    return forward
