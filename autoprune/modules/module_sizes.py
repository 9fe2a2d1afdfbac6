"""Integer attributes of torch's own layers, corrected to the sizes of their tensors."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.parametrize import is_parametrized

from autoprune.modules.attention import adapt_heads


def follows(module: nn.Module) -> bool:
    """Whether torch's own forward runs the module, with a number of groups that `prune` adapts."""
    grouped = isinstance(module, nn.GroupNorm) or (
        isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1
    )
    own = type(module).forward.__module__.startswith("torch.nn.modules.")
    return grouped and own and isinstance(module._parameters.get("weight"), nn.Parameter)


@contextmanager
def following(model: nn.Module, weights: set[int]) -> Iterator[None]:
    """Inside the block, ``weights`` has the ids of those of the modules that `follows` and are running.

    Code that takes such a weight and calls the op itself has a number of groups of its own.
    """

    def enter(module: nn.Module, _args: Any) -> None:
        weights.add(id(module.weight))

    def leave(module: nn.Module, _args: Any, _output: Any) -> None:
        weights.discard(id(module.weight))

    with ExitStack() as stack:
        for module in filter(follows, model.modules()):
            stack.callback(module.register_forward_pre_hook(enter).remove)
            stack.callback(module.register_forward_hook(leave).remove)
        yield


def may_have_sizes(module: nn.Module) -> bool:
    """Whether `prune` may have to correct attributes of the module."""
    kinds = (nn.MultiheadAttention, nn.TransformerEncoder, nn.RNNBase)
    return isinstance(module, kinds) or bool(module._parameters or module._buffers) or is_parametrized(module)


def fix_sizes(before: nn.Module, after: nn.Module) -> None:
    """Sets a module's integer attributes to the sizes of its tensors, in place."""
    if isinstance(after, nn.MultiheadAttention) and _attention_shrank(before, after):
        adapt_heads(after)
    if isinstance(after, nn.TransformerEncoder) and _attention_shrank(before, after):
        after.use_nested_tensor = False  # only PyTorch's own attention accepts nested tensors
    if isinstance(after, nn.RNNBase):
        after.input_size = cast(torch.Tensor, after.weight_ih_l0).shape[1]
    weight, old = _weight(after), _weight(before)
    if not isinstance(weight, torch.Tensor) or not isinstance(old, torch.Tensor) or weight.shape == old.shape:
        return
    if isinstance(after, nn.modules.conv._ConvNd):
        # The groups of a convolution keep their sizes, the number of groups changes.
        if after.groups > 1:
            after.groups = after.groups * weight.shape[0] // old.shape[0]
        inner, outer = weight.shape[1] * after.groups, weight.shape[0]
        after.in_channels, after.out_channels = (outer, inner) if after.transposed else (inner, outer)
    elif isinstance(after, nn.Linear):
        after.out_features, after.in_features = weight.shape
    elif isinstance(after, nn.GroupNorm):
        after.num_groups = after.num_groups * weight.shape[0] // old.shape[0]
        after.num_channels = weight.shape[0]
    elif isinstance(after, nn.modules.batchnorm._NormBase):
        after.num_features = weight.shape[0]
    elif isinstance(after, nn.Embedding):
        after.num_embeddings, after.embedding_dim = weight.shape
    elif isinstance(after, nn.PReLU):
        after.num_parameters = weight.shape[0]


def _weight(module: nn.Module) -> Any:
    if not is_parametrized(module, "weight"):
        return getattr(module, "weight", None)
    # Some parametrizations update their state whenever they are computed in training mode.
    parts = [(part, part.training) for part in cast(nn.Module, module.parametrizations).modules()]
    try:
        for part, _ in parts:
            part.training = False
        return module.weight
    finally:
        for part, training in parts:
            part.training = training


def _attention_shrank(before: nn.Module, after: nn.Module) -> bool:
    """Whether any attention inside has lost heads, or channels that it reads or makes."""
    return any(
        [x.shape for x in old.parameters()] != [x.shape for x in new.parameters()]
        for old, new in zip(before.modules(), after.modules(), strict=True)
        if isinstance(old, nn.MultiheadAttention) and isinstance(new, nn.MultiheadAttention)
    )
