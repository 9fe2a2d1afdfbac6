"""Records the channels of the feature maps that modules return and get."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.utils._pytree import tree_leaves

from autoprune.modules.tensor_tree import feature_names
from autoprune.ops.labels import Axis, TraceConstraints

Maps: TypeAlias = dict[str, list[tuple[Axis, int]]]


@contextmanager
def features_recorded(
    model: nn.Module, constraints: TraceConstraints, returned: Maps, read: Maps
) -> Iterator[None]:
    """Fills ``returned`` and ``read`` at each module's first call: see `Trace.features` and `Trace.read`."""

    def record(into: Maps, name: str, tensors: Any) -> None:
        maps = [x for x in tree_leaves(tensors) if isinstance(x, torch.Tensor) and x.dim() == 4]
        with torch._C.DisableTorchFunction():  # not a shape read of the model's code
            into.setdefault(name, [(constraints.axes(x)[1], x.shape[1]) for x in maps])

    with ExitStack() as stack:
        for name in dict.fromkeys((*dict(model.named_children()), *feature_names(model))):
            hook = model.get_submodule(name).register_forward_hook(partial(_after, record, returned, name))
            stack.callback(hook.remove)
        for name, module in model.named_modules():
            if name and any(module.children()):
                before = partial(_before, record, read, name)
                stack.callback(module.register_forward_pre_hook(before, with_kwargs=True).remove)
        yield


def _after(record: Any, into: Maps, name: str, _module: nn.Module, _inputs: Any, output: Any) -> None:
    record(into, name, output)


def _before(record: Any, into: Maps, name: str, _module: nn.Module, inputs: Any, named: Any) -> None:
    record(into, name, (inputs, named))
