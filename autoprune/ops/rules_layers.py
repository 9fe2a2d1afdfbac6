"""Rules of layers that normalize channels or act on each of them alone: norms, softmax, pooling, resizing."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autoprune.ops.labels import Args, Axis, TraceConstraints


def batch_norm(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Batch norm (torch runs instance norm as one): all its tensors follow the input's channels."""
    x, (out, *statistics) = args[0], out
    axes = list(constraints.axes(x))
    for tensor in args[1:5]:
        if isinstance(tensor, torch.Tensor):
            axis = constraints.axes(tensor)[0]
            axes[1] = constraints.unify(axes[1], axis, op) if out.shape[1] > 1 else axes[1]
            constraints.normalize(axis)
    if op == "_batch_norm_with_update" or any(arg is True for arg in args):  # by the statistics of the batch
        _freeze_normalized(constraints, [axes[0], *axes[2:]])
    for axis in (axes[0], *axes[2:]):
        constraints.shift(axis)
    constraints.put(out, axes, _zero_after_norm(constraints, *args[:3]))
    for statistic in statistics[:2]:
        if statistic.shape == out.shape[1:2]:
            constraints.put(statistic, axes[1:2])


def _freeze_normalized(constraints: TraceConstraints, axes: Sequence[Axis]) -> None:
    for axis in axes:
        constraints.freeze(axis, "is normalized over all channels")


def _zero_after_norm(
    constraints: TraceConstraints, x: torch.Tensor, weight: torch.Tensor | None, bias: torch.Tensor | None
) -> bool:
    """Whether removed channels are zero in what a norm returns that has a scale and a shift for each."""
    if weight is None:
        return constraints.zero(x)
    return constraints.zero(weight) and (bias is None or constraints.zero(bias))


def group_norm(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Group norm: its groups are removed whole, so the statistics of the others stay."""
    x, weight, bias, _, channels, _, groups = args[:7]
    axes = list(constraints.axes(x))
    for tensor in (weight, bias):
        if tensor is not None:
            axis = constraints.axes(tensor)[0]
            axes[1] = constraints.unify(axes[1], axis, op)
            constraints.normalize(axis)
    _freeze_normalized(constraints, axes[2:])
    if axes[1] is not None:
        if id(weight) not in constraints.follows:
            constraints.guess(axes[1])
        if groups == 1:
            constraints.freeze(axes[1], "is normalized over all channels")
        rows = axes[1].reshape(groups, channels // groups)
        constraints.tie(rows)
        for statistic in out[1:]:
            constraints.put(statistic, [axes[0], np.ascontiguousarray(rows[:, 0])])
    if bias is not None or not constraints.zero(x):
        constraints.shift(axes[0])
    constraints.put(out[0], axes, _zero_after_norm(constraints, x, weight, bias))


def layer_norm(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Layer norm over the last axes: its channels can't be removed."""
    x, normalized = args[0], len(args[1])
    axes = list(constraints.axes(x))
    others = axes[: len(axes) - normalized]
    _freeze_normalized(constraints, axes[len(others) :])
    for tensor in args[2:4]:
        if tensor is not None:
            _freeze_normalized(constraints, constraints.axes(tensor))
    for axis in others if args[3] is not None else ():
        constraints.shift(axis)
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


def grid_sample(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`grid_sampler`: a feature map read at the coordinates in a grid."""
    for axis in constraints.axes(args[1]):
        constraints.freeze(axis, "is a coordinate, or space that is sampled")
    spatial(constraints, op, args, out)


def roi_align(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`roi_align`: boxes resampled from a feature map."""
    for axis in constraints.axes(args[1]):
        constraints.freeze(axis, "is a box coordinate")
    channels = constraints.axes(args[0])[1]
    constraints.put(out, [None, channels, None, None], constraints.zero(args[0]))
