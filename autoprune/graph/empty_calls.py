"""Follows tensors without elements through a pruned model to the calls that refuse them."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

from autoprune.graph.emptied import Nothing

_ATTRIBUTE = "_autoprune_emptied"
Names = frozenset[str]


class EmptyCalls(TorchFunctionMode):
    """Notes calls that fail on emptied groups, and returns what they would for channels: one run finds all.

    Args:
        model: the pruned model; it is changed, and discarded after the run.
        groups_of: by name of a tensor, the emptied groups that it makes or scales channels of.

    Attributes:
        failures: the groups whose emptied tensors such a call got, and its error; several groups where they
            met in one tensor.
    """

    def __init__(self, model: nn.Module, groups_of: Callable[[str], Collection[str]]) -> None:
        super().__init__()
        self.failures: list[tuple[Names, Exception]] = []
        self._parameters: Mapping[int, Names] = {
            id(tensor): frozenset(groups_of(name))
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]
            if not tensor.numel()
        }
        for name, module in model.named_modules():
            if isinstance(module, Nothing) and (names := frozenset(groups_of(f"{name}.weight"))):
                module.register_forward_hook(lambda _m, _i, out, names=names: _tag(out, names))

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        empty = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor) and 0 in _SHAPE(x)]
        if not empty:
            return func(*args, **kwargs)
        made = [names for x in empty if (names := self._parameters.get(id(x)))]
        names = frozenset[str]().union(*(made or [x.__dict__.get(_ATTRIBUTE, ()) for x in empty]))
        try:
            out = func(*args, **kwargs)
        except Exception as error:
            self.failures.append((names, error))
            out = _as_if_full(func, args, kwargs, empty)
            if out is None:
                raise
        if names:
            for tensor in tree_leaves(out):
                if (
                    isinstance(tensor, torch.Tensor)
                    and 0 in _SHAPE(tensor)
                    and id(tensor) not in self._parameters
                ):
                    _tag(tensor, names)
        return out


_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]


def _tag(tensor: torch.Tensor, names: Names) -> None:
    tensor.__dict__[_ATTRIBUTE] = names


def _as_if_full(func: Any, args: Any, kwargs: Any, empty: list[torch.Tensor]) -> torch.Tensor | None:
    """What the call would return for a tensor without channels, if it keeps the number of axes."""
    if len(empty) != 1:
        return None
    shape = empty[0].shape

    def filled(x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros([n or 1 for n in shape]) if x is empty[0] else x

    try:
        out = func(*tree_map_only(torch.Tensor, filled, args), **tree_map_only(torch.Tensor, filled, kwargs))
    except Exception:
        return None
    if not isinstance(out, torch.Tensor) or out.dim() != len(shape):
        return None
    for axis, n in enumerate(shape):
        if n == 0:
            out = out.narrow(axis, 0, 0)
    return out.clone()
