"""The table of op rules: how each aten op joins, makes, sums and freezes channels.

A rule is a function (constraints, op, args, out) that reads the labels of an op's inputs, states constraints
on them and labels the outputs. It runs after the op. The table is keyed by the op's name without overload and
without the underscore of in-place variants.
"""

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import torch

from autoprune.ops import rules_layers as layers
from autoprune.ops import rules_product as products
from autoprune.ops import rules_shape as shape
from autoprune.ops import rules_view as views
from autoprune.ops.labels import Args, TraceConstraints
from autoprune.ops.rules_pointwise import (
    NONZERO,
    SUMS,
    ZERO_IF_ALL,
    ZERO_IF_ANY,
    ZERO_KEEPING,
    elementwise,
    reduce,
)

Rule: TypeAlias = Callable[[TraceConstraints, str, Args, Any], None]


def _table() -> dict[str, Rule]:
    names: list[tuple[Rule, str]] = [
        (products.convolution, "convolution"),
        (products.deform_conv, "torchvision::deform_conv2d"),
        (products.matmul, "mm bmm mv dot addmm addmv baddbmm"),
        (products.attention, " ".join(products.ATTENTIONS)),
        (products.embedding, "embedding"),
        (layers.batch_norm,
         "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
         "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update"),
        (layers.group_norm, "native_group_norm"),
        (layers.layer_norm, "native_layer_norm"),
        (layers.softmax, "_softmax _log_softmax _safe_softmax"),
        (layers.spatial,
         "max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d max_pool2d "
         "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d "
         "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d "
         "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
         "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d "
         "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d"),
        (layers.grid_sample, "grid_sampler_2d grid_sampler_3d"),
        (layers.roi_align, "torchvision::roi_align"),
        (shape.alias, "detach alias clone _to_copy lift_fresh contiguous"),
        (shape.factory, "zeros empty ones full new_zeros new_empty new_ones new_full"),
        (shape.factory_like, "zeros_like empty_like ones_like full_like rand_like randn_like"),
        (views.permute, "permute transpose t"),
        (views.view, "view _unsafe_view reshape _reshape_alias unsqueeze"),
        (views.squeeze, "squeeze"),
        (views.expand, "expand"),
        (views.repeat, "repeat"),
        (shape.cat, "cat"),
        (shape.stack, "stack"),
        (shape.split, "split split_with_sizes chunk"),
        (shape.take_slice, "slice"),
        (shape.select, "select unbind"),
        (shape.index, "index"),
        (shape.gather, "gather"),
        (shape.index_put, "index_put"),
        (shape.glu, "glu"),
        (shape.pad, "constant_pad_nd"),
        (shape.along, "flip roll cumsum cumprod triu tril"),
        (views.pixel_shuffle, "pixel_shuffle pixel_unshuffle"),
        (views.channel_shuffle, "channel_shuffle native_channel_shuffle"),
    ]  # fmt: skip
    table = {name: rule for rule, of_rule in names for name in of_rule.split()}
    table.update((name, elementwise) for name in [*ZERO_IF_ALL, *ZERO_IF_ANY, *ZERO_KEEPING, *NONZERO])
    table.update((name, reduce) for name in SUMS)
    return table


RULES = _table()

# The axis of channels in the result of products with a weight.
PRODUCTS = {
    "convolution": 1,
    "torchvision::deform_conv2d": 1,
    **{name: -1 for name, rule in RULES.items() if rule is products.matmul},
}

# Ops that read no more of their first tensor than its shape.
OF_SHAPE = {
    *("zero", "fill"),
    *(name for name, rule in RULES.items() if rule in (shape.factory, shape.factory_like)),
}

# Ops that make tensors of one number: `torch.full`, `torch.tensor`.
MAKES_OF_NUMBER = {"full", "new_full", "full_like", "lift_fresh"}

# Ops whose rule must run on tensors without labels: they make labels, or have a cost.
ALWAYS = {
    *("convolution", "mm", "bmm", "addmm", "baddbmm"),
    *(name for name, rule in RULES.items() if rule in (shape.factory, products.attention)),
}


def numbers_of(op: str, args: tuple[Any, ...]) -> tuple[float, ...]:
    """The scalars that an op computes with, or makes a tensor of: they may depend on a width."""
    rule = RULES.get(op)
    if rule is products.attention:
        scale = products.scale_of(op, args)
        return () if scale is None else (scale,)
    if rule is products.matmul:
        return _numbers(args[3:])
    if op == "lift_fresh":
        return _numbers([args[0].reshape(())]) if args[0].numel() == 1 else ()
    if op in MAKES_OF_NUMBER:
        return _numbers(args[-1:])
    if "norm" in op:
        return tuple(a for a in args if isinstance(a, float))  # not its lengths
    if rule is elementwise and any(isinstance(a, torch.Tensor) and a.dim() for a in args):
        return _numbers(args)
    return ()


def _numbers(args: Iterable[Any]) -> tuple[float, ...]:
    """Those of an op's arguments that are real numbers, or tensors without axes that hold one."""
    return tuple(
        float(a)
        for a in args
        if (isinstance(a, (int, float)) and not isinstance(a, bool))
        or (isinstance(a, torch.Tensor) and a.dim() == 0 and not a.is_complex())
    )


def compared(func: Any, name: str) -> Any:
    """An op as it counts where two runs are compared, `None` for one that does not.

    Whether `reshape` and `contiguous` copy depends on strides, and so on whether a length is 1.
    """
    if name == "clone":
        return None
    return torch.ops.aten.view.default if name == "_unsafe_view" else func
