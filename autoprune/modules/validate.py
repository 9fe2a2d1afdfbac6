"""Checks what is given to `analyze`; describes models and inputs that can't be traced in one line each."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from autoprune.errors import ModelError, is_out_of_memory
from autoprune.validation import check_kind

# Wrappers by class name, and the attribute that holds the model inside.
_WRAPPERS = {
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "FullyShardedDataParallel": "module",
    "OptimizedModule": "_orig_mod",
}
_LONGEST = 200


def check(model: Any, example_inputs: Any) -> None:
    """Checks that a model and its inputs are of kinds that can be traced.

    Raises:
        ModelError: they are not; the message says in one line what to give instead.
    """
    check_kind("the model", model, nn.Module, "a torch.nn.Module", ModelError)
    kinds = _class_names(model)
    if wrapper := next((name for name in _WRAPPERS if name in kinds), None):
        raise ModelError(f"the model is wrapped in {wrapper}; give model.{_WRAPPERS[wrapper]}")
    for name, module in model.named_modules():
        if problem := _unfit(module):
            where = f"`{name}` inside the model" if name else "the model"
            raise ModelError(f"{where} {problem}")
    tensors: list[tuple[str, Any]] = [*model.named_parameters(), *model.named_buffers()]
    for name, tensor in tensors:
        if is_lazy(tensor):
            raise ModelError(f"`{name}` has no shape yet; call the model once, then analyze it")
        if is_traceable_wrapper_subclass(tensor):
            kind = type(tensor).__name__
            raise ModelError(
                f"the model is sharded or quantized (`{name}` is a {kind}); give the plain model"
            )
    instead = "a tuple of the model's arguments, such as (images,), or ([image],) for a detector"
    check_kind("example_inputs", example_inputs, (tuple, list), instead, ModelError)


def _unfit(module: nn.Module) -> str | None:
    if isinstance(module, torch.jit.ScriptModule):
        return "is a ScriptModule; give the eager model that it was made from"
    kinds = _class_names(module)
    if "FullyShardedDataParallel" in kinds:
        return "is sharded (FullyShardedDataParallel); give the plain model"
    if (
        "FakeQuantizeBase" in kinds
        or hasattr(module, "_packed_params")
        or hasattr(module, "_all_weight_values")
    ):
        return f"is quantized ({type(module).__name__}); prune the float model, then quantize the pruned one"
    return None


def _class_names(module: nn.Module) -> set[str]:
    # By name: importing the classes takes seconds, and some are gone from newer versions of torch.
    return {kind.__name__ for kind in type(module).__mro__}


def failure(model: nn.Module, example_inputs: Sequence[Any], error: Exception) -> str:
    """One line on a model that fails on its inputs: what they are, its own error, and what to check."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    cause = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    cause = cause if len(cause) <= _LONGEST else f"{cause[:_LONGEST]}…"
    inputs = ", ".join(_describe(x) for x in example_inputs)
    memory = is_out_of_memory(error)
    hint = "memory ran out, give a smaller input" if memory else _hint(model, example_inputs, cause)
    return f"{type(model).__name__} fails on the example inputs ({inputs}): {cause}; {hint}"


def _hint(model: nn.Module, example_inputs: Sequence[Any], cause: str) -> str:
    leaves = list(_leaves(example_inputs))
    tensors = [x for x in leaves if isinstance(x, torch.Tensor)]
    if not leaves:
        return "give the model's arguments: (images,), or ([image],) for a detector"
    if any(isinstance(x, np.ndarray) for x in leaves):
        return "give tensors, such as torch.from_numpy(array)"
    if not tensors:
        return "give tensors: (images,), or ([image],) for a detector"
    parameter_kinds = {_kind(x) for x in model.parameters() if x.is_floating_point()}
    input_kinds = {_kind(x) for x in tensors if x.is_floating_point() or x.dtype == torch.uint8}
    if parameter_kinds and not input_kinds <= parameter_kinds:
        kinds = " and ".join(sorted(parameter_kinds))
        return f"its parameters are {kinds}; give inputs of the same dtype and device"
    if isinstance(example_inputs[0], torch.Tensor) and "list" in cause:
        return "a detector takes one list of images: ([image],)"
    return "check model(*example_inputs)"


def _leaves(value: Any) -> Iterator[Any]:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else None
    if parts is None:
        yield value
        return
    for part in parts:
        yield from _leaves(part)


def _kind(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} on {tensor.device}"


def _describe(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        return f"{list(value.shape)} {_kind(value)}"
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(_describe(x) for x in value[:3])}{', …' if len(value) > 3 else ''}]"
    return type(value).__name__
