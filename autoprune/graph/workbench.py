"""Tries many policies on one copy of a model, each undone afterwards: copying a model takes longer than running it."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autoprune.graph.groups import ChannelGraph
from autoprune.graph.surgery import adapt, copied, sliced_tensors


class Workbench:
    """A copy of a model that takes the shape of one policy after the other.

    Args:
        model: the model, which stays as it is.

    The copy is made at the first policy; it raises a `ModelError` then if the model can't be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copy: nn.Module | None = None

    @contextmanager
    def pruned(self, graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> Iterator[nn.Module]:
        """What `prune` returns for ``keep``, inside the block; arguments and errors are those of `prune`."""
        if self._copy is None:
            self._copy = copied(self._model, {})
        sliced, emptied = sliced_tensors(self._copy, graph, keep)
        before = [(module, type(module), _State(vars(module))) for module in self._copy.modules()]
        try:
            for _, _, state in before:
                state.replace(sliced)
            adapt(self._model, self._copy, graph, emptied)
            yield self._copy
        finally:
            for module, kind, state in before:
                module.__class__ = kind
                state.restore()


class _State:
    """The attributes of an object, and what the dicts and lists among them hold."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        self._held = attributes
        containers = [value for value in attributes.values() if isinstance(value, (dict, list))]
        self._contents = [(value, value.copy()) for value in (attributes, *containers)]

    def replace(self, tensors: Mapping[int, torch.Tensor]) -> None:
        """Puts other tensors in the place of those with these ids."""
        for container, contents in self._contents:
            places = contents.items() if isinstance(contents, dict) else enumerate(contents)
            for place, value in places:
                if isinstance(value, torch.Tensor) and id(value) in tensors:
                    container[place] = tensors[id(value)]

    def restore(self) -> None:
        """Undoes all changes; dicts and lists stay the same objects."""
        for container, contents in self._contents:
            if isinstance(container, dict):
                if container.keys() != contents.keys() or any(container[k] is not v for k, v in contents.items()):
                    container.clear()
                    container.update(contents)
            elif len(container) != len(contents) or any(a is not b for a, b in zip(container, contents, strict=True)):
                container[:] = contents
