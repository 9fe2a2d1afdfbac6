"""Rules of layers that normalize channels or act on each of them alone: norms, softmax, pooling, resizing."""

from typing import Any

import numpy as np
import torch

from autoprune.ops.labels import Args, TraceConstraints


def batch_norm(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Batch norm (torch runs instance norm as one): all its tensors follow the input's channels."""
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


def softmax(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Softmax: channels that it normalizes over can't be removed."""
    source = constraints.labels(args[0])
    if source:
        constraints.freeze(source.axes[args[1]], "is normalized by softmax")
        constraints.put(out, source.axes)


def spatial(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Pooling and interpolation: the digit in the op's name is the number of spatial axes."""
    dims = next(int(c) for c in reversed(op) if c in "123")
    axes = list(constraints.axes(args[0]))
    for d in range(len(axes) - dims, len(axes)):
        constraints.freeze(axes[d], "is pooled or resized as space")
        axes[d] = None
    for tensor in out if isinstance(out, tuple) else [out]:
        constraints.put(tensor, axes, constraints.zero(args[0]) and tensor.is_floating_point())


def roi_align(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`roi_align`: boxes resampled from a feature map."""
    for axis in constraints.axes(args[1]):
        constraints.freeze(axis, "is a box coordinate")
    channels = constraints.axes(args[0])[1]
    constraints.put(out, [None, channels, None, None], constraints.zero(args[0]))
