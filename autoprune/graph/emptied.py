"""What remains of layers in a pruned copy once they have no inputs or no outputs: a constant, or nothing.

A layer without inputs returns its bias at every position, and has one for that even if it had none before. A
layer without outputs returns a tensor without elements, so that the code between the layers of an emptied
branch runs as it is written, and computes nothing.
"""

import copy
from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from autoprune.modules.attention import HeadAttention, adapt_heads
from autoprune.tracing.layers import Layer, Norm, channel_axis, constant_map, in_axis, is_plain


class Nothing(nn.Module):
    """A layer without outputs: returns a tensor without channels.

    Args:
        layer: the layer whose place it takes.
    """

    def __init__(self, layer: Layer) -> None:
        super().__init__()
        self.shape_rule = _ShapeRule(layer)

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, ...] or [..., C] to the layer's output shape with C = 0."""
        return x.new_empty(self.shape_rule(x, 0))


class Constant(nn.Module):
    """A layer without inputs: returns one number per output channel at every position.

    Attributes:
        bias: the numbers, [C].
        stands_for: name of the dense module whose outputs these are: the layer, or the norm behind it.
        weight_axis: the axis of the layer's weight that held its outputs.
        dims: number of axes of space behind the channels.
    """

    def __init__(self, layer: Layer, stands_for: str) -> None:
        super().__init__()
        axis, weight = in_axis(layer), layer.weight
        bias = layer.bias
        if bias is None:
            zeros = weight.new_zeros(weight.shape[1 - axis])
            bias = nn.Parameter(zeros, requires_grad=weight.requires_grad)
        self.bias = bias
        self.shape_rule = _ShapeRule(layer)
        self.stands_for = stands_for
        self.weight_axis = 1 - in_axis(layer)

    @property
    def dims(self) -> int:  # noqa: D102
        return self.shape_rule.dims

    def forward(self, x: Tensor) -> Tensor:
        """[N, 0, ...] or [..., 0] to the layer's output shape."""
        channels = self.bias.shape[0]
        shape = self.shape_rule(x, channels)
        bias = self.bias.to(x.dtype)
        # A copy, as the code may write to it.
        return bias.view(channels, *[1] * self.dims).expand(shape).clone()

    def extra_repr(self) -> str:  # noqa: D102
        return f"{self.bias.shape[0]}, stands_for={self.stands_for!r}"


class _ShapeRule:
    """How the shape of a layer's output follows from that of its input."""

    def __init__(self, layer: Layer) -> None:
        self.dims = 0
        if isinstance(layer, nn.Linear):
            return
        self.dims = len(layer.kernel_size)
        reach = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        if layer.padding == "same":
            pads = reach
        else:
            pads = [0] * self.dims if isinstance(layer.padding, str) else [2 * p for p in layer.padding]
        self.stride, self.transposed = tuple(layer.stride), layer.transposed
        extra = layer.output_padding if layer.transposed else [0] * self.dims
        sizes = zip(pads, reach, extra, strict=True)
        self.change = tuple(r - p + e if layer.transposed else p - r for p, r, e in sizes)

    def __call__(self, x: Tensor, channels: int) -> tuple[int, ...]:
        if not self.dims:
            return (*x.shape[:-1], channels)
        sizes = zip(x.shape[-self.dims :], self.stride, self.change, strict=True)
        space = [(n - 1) * s + c + 1 if self.transposed else (n + c - 1) // s + 1 for n, s, c in sizes]
        return (*x.shape[: -self.dims - 1], channels, *space)


def without_empty(model: nn.Module, norms: Mapping[str, Norm], norm_tensors: Collection[str]) -> None:
    """Replaces the layers and norms of a pruned copy that have no inputs or no outputs, in place.

    Args:
        model: the copy, whose tensors are sliced.
        norms: by layer, the norm that alone reads its output; it is folded into what remains of the layer.
        norm_tensors: tensors of norms that have channels of an emptied group.
    """
    modules = dict(model.named_modules())
    replaced: dict[nn.Module, nn.Module] = {}
    for name, module in modules.items():
        if is_plain(module) and not module.weight.numel():
            if not module.weight.shape[1 - in_axis(module)]:
                replaced[module] = Nothing(module)
                continue
            norm = norms.get(name)
            replaced[module] = constant = Constant(module, norm.name if norm else name)
            if norm is not None:
                constant.bias = _folded(constant, module, modules[norm.name], norm.dims)
                replaced[modules[norm.name]] = nn.Identity()
        elif _is_empty_norm(name, module, norm_tensors):
            replaced[module] = nn.Identity()
    for module, new in replaced.items():
        _become(module, new)
    _leave_fused_layers(model)
    for parameter in model.parameters():
        if not parameter.numel():
            parameter.requires_grad_(False)  # no gradient ever reaches it


@torch.no_grad()
def _folded(constant: Constant, layer: Layer, norm: nn.Module, dims: int) -> nn.Parameter:
    """What the norm makes of the layer's constant map of ``dims`` axes, [C]."""
    bias, exact = constant.bias, copy.deepcopy(norm).double().eval()
    # Some norms refuse maps of a single position.
    values = exact.forward(constant_map(bias.double(), layer, [2] * dims))
    values = values.movedim(channel_axis(layer, dims), 0).reshape(len(bias), -1)
    trained = any(parameter.requires_grad for parameter in (bias, *norm.parameters()))
    return nn.Parameter(values[:, 0].to(bias.dtype), requires_grad=trained)


def _is_empty_norm(name: str, module: nn.Module, norm_tensors: Collection[str]) -> bool:
    tensors = {**module._parameters, **module._buffers}
    lengths = {x.numel() for x in tensors.values() if x is not None and x.dim()}
    return lengths == {0} and any(f"{name}.{part}" in norm_tensors for part in tensors)


def _become(old: nn.Module, new: nn.Module) -> None:
    """Makes a module another one with its own mode and hooks, wherever the model's code refers to it."""
    new.train(old.training)
    hooks = {name: x for name, x in vars(old).items() if name.startswith("_forward") and "hooks" in name}
    old.__class__ = type(new)
    vars(old).clear()
    vars(old).update(vars(new) | hooks)


def _leave_fused_layers(model: nn.Module) -> None:
    """Keeps torch's fused encoder layers, which read weights of all their layers, from running."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            empty = any(isinstance(part, (Constant, Nothing)) for part in (module.linear1, module.linear2))
            if empty and not isinstance(module.self_attn, HeadAttention):
                adapt_heads(module.self_attn)
        elif isinstance(module, nn.TransformerEncoder):
            module.use_nested_tensor = False
