"""Detects where a model's code takes a tensor's values out of torch, where no op shows what becomes of them.

A number that comes back, such as ``float(x.numpy().mean())``, may depend on how many channels there are:
channels whose values are read are frozen. Values without channels are the same in a pruned and in a masked
model, but the code may branch on them, which `verify` looks at.
"""

from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from autoprune.ops.labels import TraceConstraints

# By the function that torch hands over, how the code spells it.
_READS: dict[Any, str] = {
    torch.Tensor.numpy: ".numpy()",
    torch.Tensor.__array__: "np.asarray()",
    torch.Tensor.tolist: ".tolist()",
    torch.Tensor.__dlpack__: "DLPack",
    torch.Tensor.untyped_storage: ".untyped_storage()",
    torch.Tensor.storage: ".storage()",
    torch.Tensor.data_ptr: ".data_ptr()",
    torch.Tensor.__reduce_ex__: "pickle",
    torch.Tensor.apply_: ".apply_()",
    torch.Tensor.map_: ".map_()",
}
SCALAR_READ = "_local_scalar_dense"
"""The op behind ``.item()``, ``float()``, ``int()``, ``bool()`` and formatting, of tensors of one value."""


class ValueReads(TorchFunctionMode):
    """States in ``constraints`` which tensors' values code outside of torch reads, or changes."""

    def __init__(self, constraints: TraceConstraints) -> None:
        super().__init__()
        self._constraints = constraints

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if how := _READS.get(func):
            for tensor in args:
                if isinstance(tensor, torch.Tensor):
                    self._constraints.read(tensor, how)
        return func(*args, **(kwargs or {}))
