"""Finds the tensors inside arbitrary values."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
from torch import nn


def tensors_within(value: Any, seen: set[int] | None = None) -> Iterator[torch.Tensor]:
    """All tensors in ``value``: in collections, and in attributes of objects; not those of modules."""
    seen = set() if seen is None else seen
    if id(value) in seen or isinstance(value, (str, bytes, int, float, nn.Module, type)):
        return
    seen.add(id(value))
    if isinstance(value, torch.Tensor):
        yield value
        return
    parts = value.values() if isinstance(value, Mapping) else value if isinstance(value, Collection) else ()
    slots = [getattr(value, name, None) for name in getattr(type(value), "__slots__", ())]
    for part in (*parts, *slots, *getattr(value, "__dict__", {}).values()):
        yield from tensors_within(part, seen)


def feature_maps(output: Any) -> list[torch.Tensor]:
    """The 4-D tensors of a module's output (a tensor, or a dict or sequence of them), in order."""
    if isinstance(output, torch.Tensor):
        return [output] if output.ndim == 4 else []
    if isinstance(output, Mapping):
        output = list(output.values())
    parts = output if isinstance(output, list | tuple) else ()
    return [tensor for part in parts for tensor in feature_maps(part)]


def feature_names(model: nn.Module) -> tuple[str, ...]:
    """The modules that a detector's attribute ``features`` names; other models have a child of that name."""
    names = getattr(model, "features", ())
    is_named = isinstance(names, list | tuple) and all(isinstance(name, str) for name in names)
    return tuple(names) if is_named else ()
