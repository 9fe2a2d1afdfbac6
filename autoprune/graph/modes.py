"""Runs a model so that all its layers show, leaves it as it was, and says why it fails."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from autoprune.graph.attention import heads_visible

# Proposals and detections let through when a model is run only to see all its layers.
_FEW = 16


@contextmanager
def thresholds_lowered(model: nn.Module) -> Iterator[None]:
    """Lets every detection through, but few of them: modules' score thresholds and top-n limits."""
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
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, and everything as before after it."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer._version, buffer.clone()) for buffer in model.buffers()]
    fast_path = torch.backends.mha.get_fastpath_enabled()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())), heads_visible(model):
        try:
            torch.backends.mha.set_fastpath_enabled(False)
            model.eval()
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast_path)
            for module, training in modes:
                module.training = training
            for buffer, version, before in buffers:
                if buffer._version != version:
                    with torch.no_grad():
                        buffer.copy_(before)


def set_training(model: nn.Module) -> None:
    """Training mode for all modules but norms and dropout: they would see single values and draw numbers."""
    still = (nn.modules.batchnorm._NormBase, nn.modules.dropout._DropoutNd)
    for module in model.modules():
        module.training = not isinstance(module, still)


def failure(model: nn.Module, example_inputs: Sequence[Any], error: Exception) -> str:
    """One line on a model that fails on its inputs: what they are, and its own error."""
    lines = str(error).strip().splitlines()
    said = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    inputs = ", ".join(_describe(x) for x in example_inputs)
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    given = next((x for x in tree_leaves(list(example_inputs)) if isinstance(x, torch.Tensor)), None)
    advice = "check model(*example_inputs)"
    if given is None:
        advice = "give tensors"
    elif first is not None and (given.dtype, given.device) != (first.dtype, first.device):
        advice = f"its parameters are {_kind(first)}, give inputs of that kind"
    elif isinstance(example_inputs[0], torch.Tensor) and "list" in said:
        advice = "a detector takes one list of images: ([image],)"
    return f"{type(model).__name__} fails on the example inputs ({inputs}): {said}; {advice}"


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {_kind(value)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_describe(x) for x in value[:3])}{', …' if len(value) > 3 else ''}]"
    return type(value).__name__
