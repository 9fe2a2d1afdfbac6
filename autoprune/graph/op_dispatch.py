"""Shows every aten op of a forward pass, with what the op table knows of it."""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.graph.rules import ALWAYS, RULES, Rule

# An op's name, its rule, whether that runs on unlabeled tensors too, whether torch can take the op apart,
# whether its results are no new memory.
Known: TypeAlias = tuple[str, Rule | None, bool, bool, bool]


class OpWatcher(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls ``saw`` after every aten op, with composite ones taken apart."""

    def __init__(self, saw: Callable[[Any, Known, tuple[Any, ...], dict[str, Any], Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._saw = saw
        self._known: dict[Any, Known] = {}

    def __torch_dispatch__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        known = self._known.get(func)
        if known is None:
            known = self._known[func] = _look_up(func)
        if known[3]:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if kwargs and tensors_in(list(kwargs.values())):
            args = _positional(func, args, kwargs)
        self._saw(func, known, args, kwargs, out)
        return out


def _look_up(func: Any) -> Known:
    namespace, name = func._schema.name.split("::")
    mutates = func._schema.is_mutable
    op = name[:-1] if mutates and name.endswith("_") else name
    op = op if namespace == "aten" else f"{namespace}::{op}"
    composite = op not in RULES and func._can_decompose() if hasattr(func, "_can_decompose") else False
    return op, RULES.get(op), op in ALWAYS, composite, mutates or func.is_view


def _positional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments in the order of the op's schema, so that rules see tensors given by name."""
    rest = func._schema.arguments[len(args) :]
    return (*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest))


def tensors_in(args: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors among an op's arguments or results, in order."""
    found = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            found.append(arg)
        elif isinstance(arg, (list, tuple)):
            found.extend(tensors_in(arg))
    return found
