"""Rules of ops that produce channels: convolutions, matrix products, attention, embeddings.

Most sum products over the channels of their inputs; every multiply-add is counted here.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autoprune.ops.labels import Args, Axis, TraceConstraints
from autoprune.ops.rules_shape import freeze_indices

# By op of attention, the place of the scale among its arguments.
_SCALE_AT = {
    "_scaled_dot_product_flash_attention_for_cpu": 6,
    "_scaled_dot_product_flash_attention": 6,
    "_scaled_dot_product_efficient_attention": 7,
    "_scaled_dot_product_cudnn_attention": 8,
}
ATTENTIONS = tuple(_SCALE_AT)


def convolution(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Plain, transposed, grouped and depthwise convolutions, of any number of dimensions."""
    x, weight, bias, *_, transposed, _, groups = args
    weight_axes, x_axes = constraints.axes(weight), constraints.axes(x)
    w_out, w_in = (weight_axes[1], weight_axes[0]) if transposed else weight_axes[:2]
    for kernel in weight_axes[2:]:
        constraints.freeze(kernel, "is a kernel size")
    for axis in x_axes[2:]:
        constraints.freeze(axis, "is convolved over")

    if groups > 1 and x_axes[1] is not None and id(weight) not in constraints.follows:
        constraints.guess(x_axes[1])
        if weight_axes[0] is None and x.shape[1] == groups == weight.shape[0]:
            # One kernel, expanded to as many channels as there are.
            weight_axes = (x_axes[1], *weight_axes[1:])
    space = (x if transposed else out).shape[2:].numel()
    lengths = zip(weight.shape, weight_axes, strict=True)
    constraints.cost(space, (x.shape[0], x_axes[0]), *lengths)

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
    if bias is not None or not constraints.zero(x):
        constraints.shift(x_axes[0])
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
    """Channels of a grouped convolution: each of its groups is removed whole, inputs with outputs."""
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
    """Sums products over an axis common to ``a`` and ``b``."""
    axis = constraints.unify(a_axis, b_axis, op)
    constraints.consume(b_axis)
    constraints.consume(a_axis)
    reason = "is summed over where removed channels are not zero"
    if not (constraints.zero(a) or constraints.zero(b)):
        constraints.freeze(axis, reason)
    elif not (constraints.is_weight(a) or constraints.is_weight(b)):
        constraints.rely(axis, reason)


def deform_conv(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Deformable convolution; offsets, and inputs with several offset groups, are fixed."""
    x, weight, offset, modulation, bias = args[:5]
    groups, offset_groups = args[11:13]
    x_axes, weight_axes = constraints.axes(x), constraints.axes(weight)
    for axis in (
        *weight_axes[2:],
        *x_axes[2:],
        *constraints.axes(offset)[1:],
        *constraints.axes(modulation)[1:],
    ):
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
    constraints.shift(x_axes[0])
    constraints.put(out, [x_axes[0], made, None, None], zero and constraints.zero(bias))


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
    zero_a, zero_b = constraints.zero(a), constraints.zero(b)
    zero = (constraints.fixed(row) or zero_a) and (constraints.fixed(column) or zero_b)
    for axis in batch if not (zero_a or zero_b) else ():
        constraints.shift(axis)
    axes = [*batch, *outer]
    if added is not None:
        added_axes = constraints.axes(added)
        for d in range(1, added.dim() + 1):
            if added.shape[-d] != 1 and (axes[-d] is not None or added_axes[-d] is not None):
                axes[-d] = constraints.unify(axes[-d], added_axes[-d], op)
        for axis, own in zip(reversed(axes), (*reversed(added_axes), None, None), strict=False):
            if own is None:
                constraints.shift(axis)
        zero = zero and constraints.zero(added)
    constraints.put(out, axes, zero)


def attention(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Scaled dot products, [batch, heads, length, width] each: heads and value widths go through."""
    q, k, v = args[:3]
    q_axes, k_axes, v_axes = constraints.axes(q), constraints.axes(k), constraints.axes(v)
    _contract(constraints, op, q, q_axes[-1], k, k_axes[-1])  # for the scale see `Origins`
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
            dim = len(batch) + 2 - d
            if mask.shape[-d] != 1 and (batch[dim] is not None or mask_axes[-d] is not None):
                batch[dim] = constraints.unify(batch[dim], mask_axes[-d], op)
    rows, q_rows = list(zip(q.shape[:-2], batch, strict=True)), (q.shape[-2], q_axes[-2])
    constraints.cost(k.shape[-2], *rows, q_rows, (q.shape[-1], q_axes[-1]))
    constraints.cost(k.shape[-2], *rows, q_rows, (v.shape[-1], v_axes[-1]))
    constraints.shift(q_axes[-2])  # a removed query gets the mean of all values
    constraints.put(out[0], [*batch, q_axes[-2], v_axes[-1]], constraints.zero(v))
    if out[1].numel():  # log-sum-exp of the scores, kept for a backward pass
        constraints.put(out[1], [*batch, q_axes[-2] if out[1].shape[-1] == q.shape[-2] else None])


def scale_of(op: str, args: Args) -> float | None:
    """The scale that the code gives to an attention; without one it follows from the width."""
    place = _SCALE_AT[op]
    return args[place] if len(args) > place else None


def embedding(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`embedding`: rows of a table."""
    rows, width = constraints.axes(args[0])
    constraints.freeze(rows, "is picked from by an index")
    constraints.produce(width)
    freeze_indices(constraints, args[1:2])
    constraints.put(out, [None] * (out.dim() - 1) + [width], constraints.zero(args[0]))
