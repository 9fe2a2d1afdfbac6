"""Detects where a model's code reads the length of an axis of channels from a tensor's shape.

What the code does with the number can't be seen in a trace: it may scale by it, branch on it, or only pass
it to the next view. So it counts as a guess, which `verify` tests.
"""

import weakref
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from autoprune.ops.labels import Axis, ShapeCall, TraceConstraints
from autoprune.ops.shape_calls import CallKeys, is_shaping

_SHAPE = torch.Tensor.shape.__get__  # type: ignore[attr-defined]
_NUMEL = (torch.Tensor.numel, torch.Tensor.nelement, torch.numel)


class ShapeReads(TorchFunctionMode):
    """States a guess in ``constraints`` for every labeled axis whose length code outside of torch reads.

    Calls that give tensors a shape are noted there too. ``names`` are those of the model's modules, by id.
    """

    def __init__(self, constraints: TraceConstraints, names: Mapping[int, str] | None = None) -> None:
        super().__init__()
        self._constraints, self._keys = constraints, CallKeys(names or {}, constraints.shape_calls)

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func == _SHAPE or func is torch.Tensor.size:
            axes = self._constraints.axes(args[0])
            if isinstance(out, torch.Size):
                return (
                    TracedSize(out, axes, self._constraints)
                    if any(axis is not None for axis in axes)
                    else out
                )
            _guess(self._constraints, [axes[args[1] if len(args) > 1 else kwargs["dim"]]])
        elif func in _NUMEL or func is torch.Tensor.__len__:
            _guess(self._constraints, self._constraints.axes(args[0])[: None if func in _NUMEL else 1])
        elif is_shaping(func):
            results = out if isinstance(out, (tuple, list)) else (out,)
            outputs = tuple(tuple(zip(self._constraints.axes(x), _SHAPE(x), strict=True)) for x in results)
            call = ShapeCall(func, self._constraints.axes(args[0]), outputs)
            self._constraints.shape_calls[self._keys(func)] = call
        return out


class TracedSize(tuple[int, ...]):
    """A `torch.Size` that records which of its numbers are read.

    The model's code may store it: it does not keep the trace alive, and a copy of it is a plain `torch.Size`.
    """

    _axes: tuple[Axis, ...]
    _constraints: "weakref.ref[TraceConstraints]"

    def __new__(cls, size: torch.Size, axes: tuple[Axis, ...], constraints: TraceConstraints) -> "TracedSize":  # noqa: D102
        traced = super().__new__(cls, size)
        traced._axes, traced._constraints = axes, weakref.ref(constraints)
        return traced

    def __getitem__(self, key: Any) -> Any:  # noqa: D105
        axes = self._axes[key]
        _guess(self._constraints(), axes if isinstance(key, slice) else [axes])
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[int]:  # noqa: D105
        _guess(self._constraints(), self._axes)
        return super().__iter__()

    def numel(self) -> int:
        """As `torch.Size.numel`."""
        return prod(self)

    def __reduce__(self) -> Any:  # noqa: D105
        return torch.Size, (tuple(self),)


def _guess(constraints: TraceConstraints | None, axes: Any) -> None:
    for axis in axes:
        if constraints is not None and axis is not None:
            constraints.guess(axis)
