"""The modes that a model is run in to be traced or scored, and how it is restored afterwards."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autoprune.modules.attention import heads_visible
from autoprune.modules.response_norm import responses_visible

# Proposals and detections let through when a model is run only to reach all its layers.
_FEW = 16
_NORMS_AND_DROPOUT = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)


@contextmanager
def thresholds_lowered(model: nn.Module) -> Iterator[None]:
    """Lets a few detections through whatever their score, by modules' score thresholds and top-n limits."""
    before: list[tuple[nn.Module, str, Any]] = []
    for module in model.modules():
        for name, value in list(vars(module).items()):
            if isinstance(value, float) and "thresh" in name and ("score" in name or "conf" in name):
                lowered: Any = -1.0
            elif (
                isinstance(value, dict)
                and "top_n" in name
                and all(isinstance(n, int) for n in value.values())
            ):
                lowered = {key: min(n, _FEW) for key, n in value.items()}
            elif isinstance(value, int) and "detections_per" in name:
                lowered = min(value, _FEW)
            else:
                continue
            before.append((module, name, value))
            setattr(module, name, lowered)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


@contextmanager
def eval_then_restore(model: nn.Module) -> Iterator[None]:
    """Eval mode inside the block; training flags, buffers and random state are restored after it."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, _version(buffer), buffer.clone()) for buffer in model.buffers()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    devices = range(torch.cuda.device_count())
    with torch.random.fork_rng(devices=devices), heads_visible(model), responses_visible(model):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, training in modes:
                module.training = training
            for buffer, version, before in buffers:
                if version is None or _version(buffer) != version:
                    with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                        buffer.copy_(before)


def _version(buffer: torch.Tensor) -> int | None:
    """How often the tensor was written to; ``None`` for inference tensors, which do not track it."""
    return None if buffer.is_inference() else buffer._version


def set_training(model: nn.Module) -> None:
    """Training mode, in place, for all but norms, which may get single values here, and dropout."""
    for module in model.modules():
        module.training = not isinstance(module, _NORMS_AND_DROPOUT)


def loss_mode_copy(model: nn.Module) -> nn.Module:
    """A copy in training mode, where detectors return their losses, but for its norms and dropout.

    No statistics move, and an image's loss does not depend on its neighbors in the batch.
    """
    copied = copy.deepcopy(model).train()
    for module in copied.modules():
        if isinstance(module, _NORMS_AND_DROPOUT):
            module.eval()
    return copied
