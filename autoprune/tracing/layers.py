"""Which layers can be replaced once they have no inputs or no outputs, and which norm follows each."""

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeGuard, cast

import torch
from torch import nn

from autoprune.ops.labels import MARK
from autoprune.tracing.signal_record import SignalRecord

Layer = nn.modules.conv._ConvNd | nn.Linear
_PARTS = {"weight", "bias", "running_mean", "running_var"}
_MADE = f"{MARK}_made"
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FORWARDS = [kind.forward for kind in (*_CONVOLUTIONS, *_TRANSPOSED, nn.Linear)]


def is_plain(module: nn.Module) -> TypeGuard[Layer]:
    """Whether a module is a convolution or a linear layer that computes nothing but its own product."""
    return (
        isinstance(module, (nn.modules.conv._ConvNd, nn.Linear))
        and type(module).forward in _FORWARDS
        and all(type(module)._conv_forward is k._conv_forward for k in _CONVOLUTIONS if isinstance(module, k))
        and module._parameters.get("weight") is not None
    )


def in_axis(layer: Layer) -> int:
    """The axis of the weight that holds inputs."""
    return 0 if getattr(layer, "transposed", False) else 1


@dataclass
class LayerRecord:
    """The plain layers of a model by name, and what follows them.

    Attributes:
        layers: all of them.
        norms: the norm that alone reads a layer's output, at every call; the layer alone feeds it.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    norms: dict[str, str] = field(default_factory=dict)


@contextmanager
def layers_recorded(model: nn.Module, signal: SignalRecord, record: LayerRecord) -> Iterator[None]:
    """Fills ``record`` with what is called inside the block; ``signal`` says who reads what."""
    made: dict[str, list[int]] = {}  # by layer, the op that each call ended with
    read: dict[str, list[int]] = {}  # by norm, the op whose result each call reads; -1 if that is no layer's

    def after_layer(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            writers = signal.writers(output)
            made.setdefault(name, []).append(writers[0] if len(writers) == 1 else -1)
            output.__dict__[_MADE] = (signal, writers)

        return hook

    def before_norm(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any) -> None:
            tensor = args[0] if args and isinstance(args[0], torch.Tensor) else None
            writers = () if tensor is None else signal.writers(tensor)
            # A view of the output, or what was written to since, is another tensor to the norm.
            direct = tensor is not None and tensor.__dict__.get(_MADE) == (signal, writers)
            read.setdefault(name, []).append(writers[0] if direct and len(writers) == 1 else -1)

        return hook

    with ExitStack() as stack:
        for name, module in model.named_modules():
            if is_plain(module):
                record.layers[name] = module
                stack.callback(module.register_forward_hook(after_layer(name)).remove)
            elif _is_norm(module):
                stack.callback(module.register_forward_pre_hook(before_norm(name)).remove)
        yield
    readers = Counter(
        n for op in signal.ops for n in {source for each in op.reads for source in each.sources}
    )
    layer_of = {tuple(ops): name for name, ops in made.items() if -1 not in ops}
    for norm, ops in read.items():
        layer = layer_of.get(tuple(ops))
        if layer is None or any(readers[op] != 1 for op in ops):
            continue
        outputs = record.layers[layer].weight.shape[1 - in_axis(record.layers[layer])]
        if tuple(cast(torch.Tensor, model.get_submodule(norm).weight).shape) == (outputs,):
            record.norms[layer] = norm


def _is_norm(module: nn.Module) -> bool:
    """Whether a module holds nothing but scales, shifts and statistics, one per channel."""
    tensors = {
        name: x
        for name, x in (*module._parameters.items(), *module._buffers.items())
        if x is not None and x.dim()
    }
    one_each = {tuple(x.shape) for x in tensors.values()}
    return "weight" in tensors and set(tensors) <= _PARTS and len(one_each) == 1 and not module._modules
