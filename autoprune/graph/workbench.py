"""Tries many policies on one copy of a model, each undone afterwards: copying takes longer than running."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from autoprune.graph.groups import ChannelGraph
from autoprune.graph.surgery import adapt, copied, sliced_tensors
from autoprune.modules.module_sizes import may_have_sizes


class Workbench:
    """A copy of a model that takes the shape of one policy after the other.

    Args:
        model: the model, which stays as it is.

    The copy is made at the first policy; it raises a `ModelError` then if the model can't be copied.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._copy: nn.Module | None = None

    def modules(self) -> dict[str, nn.Module]:
        """The modules of the copy by name."""
        return dict(self._copied().named_modules())

    def names(self) -> dict[int, str]:
        """The name of each module of the copy, by its id."""
        return {id(module): name for name, module in self._copied().named_modules()}

    @contextmanager
    def pruned(self, graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> Iterator[nn.Module]:
        """What `prune` returns for ``keep``, inside the block; arguments and errors are those of `prune`."""
        copy = self._copied()
        sliced, kept = sliced_tensors(self._tensors, graph, keep)
        try:
            for _, _, state in self._states:
                state.replace(sliced)
            adapt(self._sized, copy, graph, kept)
            yield copy
        finally:
            for module, kind, state in self._states:
                module.__class__ = kind
                state.restore()

    def _copied(self) -> nn.Module:
        if self._copy is None:
            copy = copied(self._model, {})
            self._tensors = dict([*copy.named_parameters(), *copy.named_buffers()])
            self._states = [(module, type(module), _State(vars(module))) for module in copy.modules()]
            pairs = zip(self._model.modules(), copy.modules(), strict=True)
            self._sized = [pair for pair in pairs if may_have_sizes(pair[0])]
            self._copy = copy
        return self._copy


class _State:
    """The attributes of an object, and what the dicts and lists among them hold."""

    def __init__(self, attributes: dict[str, Any]) -> None:
        containers = [value for value in attributes.values() if isinstance(value, (dict, list))]
        self._contents = [(value, value.copy()) for value in (attributes, *containers)]
        self._tensors: list[tuple[Any, Any, int]] = [
            (container, place, id(value))
            for container, contents in self._contents
            for place, value in (contents.items() if isinstance(contents, dict) else enumerate(contents))
            if isinstance(value, torch.Tensor)
        ]

    def replace(self, tensors: Mapping[int, torch.Tensor]) -> None:
        """Puts other tensors in the place of those with these ids."""
        for container, place, key in self._tensors:
            if key in tensors:
                container[place] = tensors[key]

    def restore(self) -> None:
        """Undoes all changes; dicts and lists stay the same objects."""
        for container, contents in self._contents:
            if isinstance(container, dict):
                container.clear()
                container.update(contents)
            else:
                container[:] = contents
