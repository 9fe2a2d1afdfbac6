"""The table of op rules: how each aten op joins, makes, sums and freezes channels.

A rule is a function (constraints, op, args, out) that reads the labels of an op's inputs, states constraints and
labels its outputs. It runs after the op. The table is keyed by the op's name without overload and
without the underscore of in-place variants.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from autoprune.graph import rules_shape as shape
from autoprune.graph import rules_view as views
from autoprune.graph.labels import Args, Axis, TraceConstraints
from autoprune.graph.rules_pointwise import (
    NONZERO,
    SUMS,
    ZERO_IF_ALL,
    ZERO_IF_ANY,
    ZERO_KEEPING,
    elementwise,
    reduce,
    softmax,
)

Rule: TypeAlias = Callable[[TraceConstraints, str, Args, Any], None]


def convolution(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Plain, transposed, grouped and depthwise convolutions, of any number of dimensions."""
    x, weight, bias, *_, transposed, _, groups = args
    weight_axes, x_axes = constraints.axes(weight), constraints.axes(x)
    w_out, w_in = (weight_axes[1], weight_axes[0]) if transposed else weight_axes[:2]
    for kernel in weight_axes[2:]:
        constraints.freeze(kernel, "is a kernel size")
    for space in x_axes[2:]:
        constraints.freeze(space, "is convolved over")

    if groups > 1 and x_axes[1] is not None and id(weight) not in constraints.follows:
        constraints.guess(x_axes[1])
        if weight_axes[0] is None and x.shape[1] == groups == weight.shape[0]:
            # One kernel, expanded to as many channels as there are.
            weight_axes = (x_axes[1], *weight_axes[1:])
    x_shape = x.shape if transposed else out.shape
    lengths = zip(weight.shape, weight_axes, strict=True)
    constraints.cost(x_shape[0] * x_shape[2:].numel(), *lengths)

    made, zero = w_out, constraints.zero(weight)
    if groups == 1:
        _contract(constraints, op, x, x_axes[1], weight, w_in)
        constraints.produce(made)
    else:
        made = _grouped(constraints, x.shape[1], x_axes[1], weight_axes, transposed, groups, out.shape[1])
        zero = (zero or not constraints.labels(weight)) and constraints.zero(x)
    if bias is not None:
        made = constraints.unify(made, constraints.axes(bias)[0], op)
        zero = zero and constraints.zero(bias)
    constraints.put(out, [x_axes[0], made, *[None] * (out.dim() - 2)], zero)


def _grouped(
    constraints: TraceConstraints,
    c_in: int,
    x_axis: Axis,
    weight: Sequence[Axis],
    transposed: bool,
    groups: int,
    c_out: int,
) -> Axis:
    """Channels of a grouped convolution: each of its groups goes whole, inputs with outputs."""
    whole, within = weight[:2]
    constraints.freeze(within, "is inside the groups of a convolution")
    if transposed:
        constraints.unify(x_axis, whole, "a grouped convolution")
        made: Axis = constraints.fresh(c_out)
    else:
        made = whole
    per_in, per_out = c_in // groups, c_out // groups
    if per_in > 1:
        constraints.produce(made)
    if x_axis is None or made is None:
        constraints.freeze(made, "is made by a grouped convolution from an input of fixed width")
        constraints.freeze(x_axis, "meets a grouped convolution of fixed width")
        return made
    rows = [x_axis.reshape(groups, per_in), made.reshape(groups, per_out)]
    if per_in == per_out:
        made = constraints.unify(made, x_axis, "a grouped convolution")
        constraints.tie(rows[0])
    else:
        constraints.tie(np.concatenate(rows, axis=1))
    return made


def _contract(
    constraints: TraceConstraints, op: str, a: torch.Tensor, a_axis: Axis, b: torch.Tensor, b_axis: Axis
) -> None:
    """Sums products over an axis that ``a`` and ``b`` share."""
    axis = constraints.unify(a_axis, b_axis, op)
    constraints.consume(b_axis)
    constraints.consume(a_axis)
    if axis is not None and not (constraints.zero(a) or constraints.zero(b)):
        constraints.freeze(axis, "is summed over where removed channels are not zero")


def matmul(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`mm`, `bmm`, `mv`, `dot` and `addmm`, `addmv`, `baddbmm`: ... m k, ... k n -> ... m n."""
    added = args[0] if op in ("addmm", "addmv", "baddbmm") else None
    a, b = args[1:3] if added is not None else args[:2]
    a_axes, b_axes = constraints.axes(a), constraints.axes(b)
    batch = [constraints.unify(p, q, op) for p, q in zip(a_axes[:-2], b_axes[:-2], strict=True)]
    inner = -2 if b.dim() > 1 else -1
    _contract(constraints, op, a, a_axes[-1], b, b_axes[inner])
    outer = [*a_axes[-2:-1], *(b_axes[-1:] if b.dim() > 1 else [])]
    for axis in outer:
        constraints.produce(axis)
    if out.dim() > 1:
        lengths = [*zip(a.shape, a_axes, strict=True), (b.shape[-1], b_axes[-1])]
        constraints.cost(1, *lengths)
    # A removed row needs zeros in a, a removed column zeros in b.
    row = a_axes[-2] if a.dim() > 1 else None
    column = b_axes[-1] if b.dim() > 1 else None
    zero = (row is None or constraints.zero(a)) and (column is None or constraints.zero(b))
    axes = [*batch, *outer]
    if added is not None:
        added_axes = constraints.axes(added)
        for d in range(1, added.dim() + 1):
            if added.shape[-d] != 1 and (axes[-d] is not None or added_axes[-d] is not None):
                axes[-d] = constraints.unify(axes[-d], added_axes[-d], op)
        zero = zero and constraints.zero(added)
    constraints.put(out, axes, zero)


def batch_norm(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Batch norm (and instance norm, which is one): every tensor of it follows the input's channels."""
    x, (out, *statistics) = args[0], out
    axes = list(constraints.axes(x))
    affine = args[1] is not None
    for tensor in args[1:5]:
        if isinstance(tensor, torch.Tensor):
            axis = constraints.axes(tensor)[0]
            axes[1] = constraints.unify(axes[1], axis, op) if out.shape[1] > 1 else axes[1]
            constraints.normalize(axis)
    constraints.put(out, axes, affine or constraints.zero(x))
    for statistic in statistics[:2]:
        if statistic.shape == out.shape[1:2]:
            constraints.put(statistic, axes[1:2])


def group_norm(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Group norm: its groups are removed whole, so the statistics of the others stay."""
    x, weight, bias, _, channels, _, groups = args[:7]
    axes = list(constraints.axes(x))
    for tensor in (weight, bias):
        if tensor is not None:
            axis = constraints.axes(tensor)[0]
            axes[1] = constraints.unify(axes[1], axis, op)
            constraints.normalize(axis)
    if axes[1] is not None:
        if id(weight) not in constraints.follows:
            constraints.guess(axes[1])
        if groups == 1:
            constraints.freeze(axes[1], "is normalized over all channels")
        rows = axes[1].reshape(groups, channels // groups)
        constraints.tie(rows)
        for statistic in out[1:]:
            constraints.put(statistic, [axes[0], np.ascontiguousarray(rows[:, 0])])
    constraints.put(out[0], axes, weight is not None or constraints.zero(x))


def layer_norm(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Layer norm over the last axes: its channels can't be removed."""
    x, normalized = args[0], len(args[1])
    axes = list(constraints.axes(x))
    for d in range(len(axes) - normalized, len(axes)):
        constraints.freeze(axes[d], "is normalized over all channels")
    for tensor in args[2:4]:
        if tensor is not None:
            for axis in constraints.axes(tensor):
                constraints.freeze(axis, "is normalized over all channels")
    constraints.put(out[0], axes, constraints.zero(x))


def spatial(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Pooling and interpolation: the number in the op's name says how many axes are space."""
    dims = next(int(c) for c in reversed(op) if c in "123")
    axes = list(constraints.axes(args[0]))
    for d in range(len(axes) - dims, len(axes)):
        constraints.freeze(axes[d], "is pooled or resized as space")
        axes[d] = None
    for part in out if isinstance(out, tuple) else [out]:
        constraints.put(part, axes, constraints.zero(args[0]) and part.is_floating_point())


def attention(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Scaled dot products, [batch, heads, length, width] each: heads and value widths go through."""
    q, k, v = args[:3]
    q_axes, k_axes, v_axes = constraints.axes(q), constraints.axes(k), constraints.axes(v)
    for axis in (q_axes[-1], k_axes[-1]):
        constraints.freeze(axis, "sets the scale of attention")
    for axis in (k_axes[-2], v_axes[-2]):
        constraints.freeze(axis, "is a softmax over positions")
    batch = [constraints.unify(constraints.unify(a, b, op), c, op)
             for a, b, c in zip(q_axes[:-2], k_axes[:-2], v_axes[:-2], strict=True)]  # fmt: skip
    mask = next((arg for arg in args[3:] if isinstance(arg, torch.Tensor)), None)
    if mask is not None:
        mask_axes = constraints.axes(mask)
        for axis in mask_axes[-2:]:
            constraints.freeze(axis, "is a softmax over positions")
        for d in range(3, mask.dim() + 1):
            at = len(batch) + 2 - d
            if mask.shape[-d] != 1 and (batch[at] is not None or mask_axes[-d] is not None):
                batch[at] = constraints.unify(batch[at], mask_axes[-d], op)
    rows, q_rows = list(zip(q.shape[:-2], batch, strict=True)), (q.shape[-2], q_axes[-2])
    constraints.cost(k.shape[-2], *rows, q_rows, (q.shape[-1], q_axes[-1]))
    constraints.cost(k.shape[-2], *rows, q_rows, (v.shape[-1], v_axes[-1]))
    constraints.put(out[0], [*batch, q_axes[-2], v_axes[-1]], constraints.zero(v))
    if out[1].numel():  # the logarithms of the softmax' sums, kept for a backward pass
        constraints.put(out[1], [*batch, q_axes[-2] if out[1].shape[-1] == q.shape[-2] else None])


def embedding(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`embedding`: rows of a table."""
    rows, width = constraints.axes(args[0])
    constraints.freeze(rows, "is picked from by an index")
    constraints.produce(width)
    constraints.put(out, [None] * (out.dim() - 1) + [width], constraints.zero(args[0]))


def deform_conv(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Deformable convolution; offsets, and inputs that have several groups of them, are fixed."""
    x, weight, offset, modulation, bias = args[:5]
    groups, offset_groups = args[11:13]
    x_axes, weight_axes = constraints.axes(x), constraints.axes(weight)
    for axis in (*weight_axes[2:], *x_axes[2:], *constraints.axes(offset)[1:], *constraints.axes(modulation)[1:]):
        constraints.freeze(axis, "is an offset, a kernel size or convolved over")
    made, zero = weight_axes[0], constraints.zero(weight)
    if groups == 1:
        _contract(constraints, op, x, x_axes[1], weight, weight_axes[1])
        constraints.produce(made)
    else:
        made = _grouped(constraints, x.shape[1], x_axes[1], weight_axes, False, groups, out.shape[1])
        zero = zero and constraints.zero(x)
    if offset_groups > 1:
        constraints.freeze(x_axes[1], "has several groups of offsets")
    made = constraints.unify(made, constraints.axes(bias)[0], op)
    constraints.put(out, [x_axes[0], made, None, None], zero and constraints.zero(bias))


def roi_align(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Regions of a feature map, resampled."""
    for axis in constraints.axes(args[1]):
        constraints.freeze(axis, "is a box coordinate")
    channels = constraints.axes(args[0])[1]
    constraints.put(out, [None, channels, None, None], constraints.zero(args[0]))


def _table() -> dict[str, Rule]:
    table: dict[str, Rule] = {"convolution": convolution, "_softmax": softmax, "_log_softmax": softmax,
                              "_safe_softmax": softmax}  # fmt: skip
    groups: list[tuple[Rule, str]] = [
        (matmul, "mm bmm mv dot addmm addmv baddbmm"),
        (batch_norm, "native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training "
                     "cudnn_batch_norm miopen_batch_norm _batch_norm_with_update"),
        (group_norm, "native_group_norm"),
        (layer_norm, "native_layer_norm"),
        (embedding, "embedding"),
        (attention, "_scaled_dot_product_flash_attention _scaled_dot_product_flash_attention_for_cpu "
                    "_scaled_dot_product_efficient_attention _scaled_dot_product_cudnn_attention"),
        (roi_align, "torchvision::roi_align"),
        (deform_conv, "torchvision::deform_conv2d"),
        (spatial, "max_pool2d_with_indices max_pool3d_with_indices avg_pool2d avg_pool3d max_pool2d "
                  "_adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool2d adaptive_max_pool3d "
                  "upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact2d "
                  "upsample_linear1d upsample_bilinear2d upsample_bicubic2d upsample_trilinear3d "
                  "_upsample_bilinear2d_aa _upsample_bicubic2d_aa reflection_pad1d reflection_pad2d "
                  "reflection_pad3d replication_pad1d replication_pad2d replication_pad3d "
                  "grid_sampler_2d grid_sampler_3d"),
        (shape.alias, "detach alias clone _to_copy lift_fresh contiguous"),
        (shape.factory, "zeros empty ones full new_zeros new_empty new_ones new_full"),
        (shape.factory_like, "zeros_like empty_like ones_like full_like rand_like randn_like"),
        (views.permute, "permute transpose t"),
        (views.view, "view _unsafe_view reshape _reshape_alias unsqueeze squeeze"),
        (views.expand, "expand"),
        (views.repeat, "repeat"),
        (shape.cat, "cat"),
        (shape.stack, "stack"),
        (shape.split, "split split_with_sizes chunk"),
        (shape.take_slice, "slice"),
        (shape.select, "select unbind"),
        (shape.index, "index"),
        (shape.index_put, "index_put"),
        (shape.glu, "glu"),
        (shape.pad, "constant_pad_nd"),
        (shape.along, "flip roll cumsum cumprod"),
        (views.pixel_shuffle, "pixel_shuffle pixel_unshuffle"),
        (views.channel_shuffle, "channel_shuffle native_channel_shuffle"),
    ]  # fmt: skip
    table.update((name, rule) for rule, names in groups for name in names.split())
    table.update((name, elementwise) for name in [*ZERO_IF_ALL, *ZERO_IF_ANY, *ZERO_KEEPING, *NONZERO])
    table.update((name, reduce) for name in SUMS)
    return table


RULES = _table()

# Ops whose rule must run on tensors without labels: they make labels, or have a cost.
ALWAYS = {
    *("convolution", "mm", "bmm", "addmm", "baddbmm"),
    *(name for name, rule in RULES.items() if rule in (shape.factory, attention)),
}
