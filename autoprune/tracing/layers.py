"""Which layers can be replaced once they have no inputs or no outputs, and which norm follows each."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeGuard, cast

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


class Norm(NamedTuple):
    """A norm that maps a constant per channel to a constant per channel, wherever and however large it is.

    Attributes:
        name: of the module.
        dims: the number of axes of what it reads.
    """

    name: str
    dims: int


@dataclass
class LayerRecord:
    """The plain layers of a model by name, and what follows them.

    Attributes:
        layers: all of them.
        norms: the norm that alone reads a layer's output, at every call; the layer alone feeds it.
    """

    layers: dict[str, Layer] = field(default_factory=dict)
    norms: dict[str, Norm] = field(default_factory=dict)


@contextmanager
def layers_recorded(model: nn.Module, signal: SignalRecord, record: LayerRecord) -> Iterator[None]:
    """Fills ``record`` with what is called inside the block; ``signal`` says who reads what."""
    made: dict[str, list[int]] = {}  # by layer, the op that each call ended with
    read: dict[str, list[int]] = {}  # by norm, the op whose result each call reads; -1 if that is no layer's
    dims: dict[str, int] = {}  # by norm, the number of axes of what the last call reads

    def after_layer(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: Any, output: torch.Tensor) -> None:
            writers = signal.writers(output)
            made.setdefault(name, []).append(writers[0] if len(writers) == 1 else -1)
            output.__dict__[_MADE] = (signal, writers)

        return hook

    def before_norm(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            alone = len(args) == 1 and not kwargs and isinstance(args[0], torch.Tensor)
            tensor = args[0] if alone else None
            dims[name] = 0 if tensor is None else tensor.dim()
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
                hook = module.register_forward_pre_hook(before_norm(name), with_kwargs=True)
                stack.callback(hook.remove)
        yield
    readers = Counter(
        n for op in signal.ops for n in {source for each in op.reads for source in each.sources}
    )
    layer_of = {tuple(ops): name for name, ops in made.items() if -1 not in ops}
    for norm, ops in read.items():
        layer = layer_of.get(tuple(ops))
        if layer is None or any(readers[op] != 1 for op in ops):
            continue
        module = record.layers[layer]
        if _keeps_constants(model.get_submodule(norm), module, dims[norm]):
            record.norms[layer] = Norm(norm, dims[norm])


def _is_norm(module: nn.Module) -> bool:
    """Whether a module holds nothing but scales, shifts and statistics, one per channel."""
    tensors = {
        name: x
        for name, x in (*module._parameters.items(), *module._buffers.items())
        if x is not None and x.dim()
    }
    one_each = {tuple(x.shape) for x in tensors.values()}
    return "weight" in tensors and set(tensors) <= _PARTS and len(one_each) == 1 and not module._modules


def constant_map(values: torch.Tensor, layer: Layer, lengths: Sequence[int]) -> torch.Tensor:
    """The output of a layer without inputs: ``values`` [C] at every position.

    ``lengths`` are those of its axes; that of the channels is not used.
    """
    axis = channel_axis(layer, len(lengths))
    shape = [*lengths[:axis], len(values), *lengths[axis + 1 :]]
    return values.view(-1, *[1] * (len(lengths) - axis - 1)).expand(shape)


def channel_axis(layer: Layer, dims: int) -> int:
    """The axis of channels in a layer's output of so many axes."""
    return dims - 1 - (0 if isinstance(layer, nn.Linear) else len(layer.kernel_size))


@torch.no_grad()
def _keeps_constants(norm: nn.Module, layer: Layer, dims: int) -> bool:
    """Whether a norm behind a layer maps a constant per channel to one, whatever its parameters hold.

    Positions, borders or sizes that play a part show in small maps of two sizes.
    """
    channels = layer.weight.shape[1 - in_axis(layer)]
    if tuple(cast(torch.Tensor, norm.weight).shape) != (channels,):
        return False
    random = torch.Generator().manual_seed(0)
    axis = channel_axis(layer, dims)
    results = []
    try:
        tried = copy.deepcopy(norm).to("cpu", torch.float64).eval()
        for tensor in (*tried.parameters(), *tried.buffers()):
            if tensor.dim():
                tensor.copy_(torch.rand(tensor.shape, generator=random, dtype=torch.float64) + 0.5)
        values = torch.rand(channels, generator=random, dtype=torch.float64)
        for first in (2, 5):
            x = constant_map(values, layer, [first + place for place in range(dims)])
            results.append(tried.forward(x).expand_as(x).movedim(axis, 0).reshape(channels, -1))
    except Exception:  # of any kind: code for tensors of one size, or not to be copied
        return False
    return all(torch.allclose(result, results[0][:, :1].expand_as(result)) for result in results)
