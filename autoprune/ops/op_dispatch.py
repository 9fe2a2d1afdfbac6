"""Intercepts every aten op of a forward pass and looks up its entry in the op table."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from autoprune.ops.rules import ALWAYS, RULES, Rule

_FACTORS = {"scale", "alpha", "beta", "value"}
"""Numbers that ops compute with, given by name."""


class OpEntry(NamedTuple):
    """What is known of an op before it runs.

    Attributes:
        name: its key in the op table.
        rule: its rule, if the table has one.
        always: whether the rule runs on unlabeled tensors too.
        composite: whether torch can decompose the op into others.
        aliases: whether its results take no new memory: views, and in-place ops.
    """

    name: str
    rule: Rule | None
    always: bool
    composite: bool
    aliases: bool


class OpDispatch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Calls ``on_op(func, entry, args, kwargs, out)`` after every aten op; composite ops are decomposed."""

    def __init__(self, on_op: Callable[[Any, OpEntry, tuple[Any, ...], dict[str, Any], Any], None]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._on_op = on_op
        self._entries: dict[Any, OpEntry] = {}

    def __torch_dispatch__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        entry = self._entries.get(func)
        if entry is None:
            entry = self._entries[func] = _entry(func)
        if entry.composite:
            with self:
                return func.decompose(*args, **kwargs)
        out = func(*args, **kwargs)
        if kwargs and (tensors_in(list(kwargs.values())) or not _FACTORS.isdisjoint(kwargs)):
            args = _positional(func, args, kwargs)
        self._on_op(func, entry, args, kwargs, out)
        return out


def _entry(func: Any) -> OpEntry:
    namespace, name = func._schema.name.split("::")
    mutates = func._schema.is_mutable
    op = name[:-1] if mutates and name.endswith("_") else name
    op = op if namespace == "aten" else f"{namespace}::{op}"
    composite = op not in RULES and func._can_decompose() if hasattr(func, "_can_decompose") else False
    return OpEntry(op, RULES.get(op), op in ALWAYS, composite, mutates or func.is_view)


def _positional(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, ...]:
    """All arguments in the order of the op's schema, so that rules see what is given by name."""
    rest = func._schema.arguments[len(args) :]
    return (*args, *(kwargs.get(argument.name, argument.default_value) for argument in rest))


def tensors_in(args: Sequence[Any]) -> list[torch.Tensor]:
    """The tensors among an op's arguments or results, in order."""
    tensors = []
    for arg in args:
        if isinstance(arg, torch.Tensor):
            tensors.append(arg)
        elif isinstance(arg, (list, tuple)):
            tensors.extend(tensors_in(arg))
    return tensors
