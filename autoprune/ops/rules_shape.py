"""Rules of ops that create, join, split and index tensors without computing on their values."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from autoprune.ops.labels import Args, Atoms, Axis, TraceConstraints

# Buffers longer than this on any axis (lists of anchors, of candidates) never hold channels.
_LONGEST_FACTORY = 1 << 16


def alias(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """The same elements in the same shape: `detach`, `clone`, `_to_copy`, …."""
    source = constraints.labels(args[0])
    if source:
        constraints.put(out, source.axes, source.zero)


def factory(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """A new tensor: its axes take the labels of what is first written to them."""
    if out.dim() > 1 and max(out.shape) <= _LONGEST_FACTORY:
        filled_with_zero = "zero" in op or "empty" in op or _fill_value(op, args) == 0
        axes = [constraints.fresh(n) if n > 1 else None for n in out.shape]
        for axis in axes:
            if axis is not None:
                constraints.guess(axis)
        constraints.put(out, axes, filled_with_zero)


def _fill_value(op: str, args: Args) -> Any:
    if "full" not in op:
        return None
    return args[-1]


def factory_like(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """A new tensor of the shape of another."""
    source = constraints.labels(args[0])
    if source:
        zero = op in ("zeros_like", "empty_like") or _fill_value(op, args) == 0
        constraints.put(out, source.axes, zero)


def cat(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`cat`: labels are concatenated along its axis, and unified on all others."""
    parts = [part for part in args[0] if part.numel() or part.dim() == out.dim()]
    dim = (args[1] if len(args) > 1 else 0) % out.dim()
    axes = _unify_axes(constraints, op, parts, [d for d in range(out.dim()) if d != dim], out.dim())
    labels = [constraints.axes(part)[dim] for part in parts]
    if any(label is not None for label in labels):
        axes[dim] = np.concatenate(
            [_fixed(constraints, part.shape[dim]) if label is None else label
             for part, label in zip(parts, labels, strict=True)]
        )  # fmt: skip
    constraints.put(out, axes, all(constraints.zero(part) for part in parts))


def stack(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`stack`: a new axis; all others are unified."""
    dim = (args[1] if len(args) > 1 else 0) % out.dim()
    axes = _unify_axes(constraints, op, args[0], range(out.dim() - 1), out.dim() - 1)
    axes.insert(dim, None)
    constraints.put(out, axes, all(constraints.zero(part) for part in args[0]))


def _unify_axes(
    constraints: TraceConstraints, op: str, parts: Sequence[torch.Tensor], dims: Sequence[int], count: int
) -> list[Axis]:
    """Unifies the axes ``dims`` of all parts."""
    axes: list[Axis] = [None] * count
    axes_of_parts = [constraints.axes(part) for part in parts]
    for d in dims:
        labels = [part_axes[d] for part_axes in axes_of_parts]
        if any(label is not None for label in labels):
            axes[d] = labels[0]
            for label in labels[1:]:
                axes[d] = constraints.unify(axes[d], label, op)
    return axes


def _fixed(constraints: TraceConstraints, count: int) -> Atoms:
    """A label for constant channels within an axis that has others."""
    atoms = constraints.fresh(count)
    constraints.freeze(atoms, "meets channels of a constant")
    return atoms


def split(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`split`, `split_with_sizes`, `chunk`: equal parts of channels shrink together, others are fixed."""
    source = constraints.labels(args[0])
    if source is None:
        return
    dim = (args[2] if len(args) > 2 else 0) % len(source.axes)
    axis = source.axes[dim]
    pieces: list[Axis] = [None] * len(out)
    if axis is not None:
        sizes = [part.shape[dim] for part in out]
        if len(set(sizes)) == 1:
            _tie_parts(constraints, axis, len(out))
        else:
            constraints.freeze(axis, "is split into unequal parts")
        pieces = list(np.split(axis, np.cumsum(sizes)[:-1]))
    for part, piece in zip(out, pieces, strict=True):
        axes = [*source.axes[:dim], piece, *source.axes[dim + 1 :]]
        constraints.put(part, axes, source.zero)


def _tie_parts(constraints: TraceConstraints, axis: Atoms, count: int) -> None:
    if count > 1:
        constraints.tie(axis.reshape(count, -1).T)
        constraints.guess(axis)


def take_slice(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`slice`: one of several equal parts, like `split`; any other range of channels freezes them."""
    source = constraints.labels(args[0])
    if source is None:
        return
    dim = (args[1] if len(args) > 1 else 0) % len(source.axes)
    axis, length = source.axes[dim], args[0].shape[dim]
    axes = list(source.axes)
    if axis is not None and out.shape[dim] != length:
        start = args[2] if len(args) > 2 and args[2] is not None else 0
        step = args[4] if len(args) > 4 else 1
        start = max(start + length, 0) if start < 0 else start
        size = out.shape[dim]
        if step == 1 and size and length % size == 0 and start % size == 0:
            _tie_parts(constraints, axis, length // size)
        else:
            constraints.freeze(axis, "is sliced")
        axes[dim] = axis[start : start + size * step : step]
    if out.numel():
        constraints.put(out, axes, source.zero)


def select(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`select`, `unbind`: picks single indices of an axis."""
    source = constraints.labels(args[0])
    if source is None:
        return
    dim = (args[1] if len(args) > 1 else 0) % len(source.axes)
    constraints.freeze(source.axes[dim], "is picked from by number")
    rest = source.axes[:dim] + source.axes[dim + 1 :]
    for part in out if isinstance(out, (tuple, list)) else [out]:
        constraints.put(part, rest, source.zero)


def _after_index(
    constraints: TraceConstraints, tensor: torch.Tensor, indices: Sequence[torch.Tensor | None]
) -> list[Axis]:
    """Labels of ``tensor[indices]``; indexed channels are frozen."""
    axes = list(constraints.axes(tensor))
    # A boolean mask indexes as many axes as it has dimensions.
    spans = [
        1 if index is None or index.dtype not in (torch.bool, torch.uint8) else index.dim()
        for index in indices
    ]
    d, kept, indexed, positions = 0, [], [], []
    for k, (index, span) in enumerate(zip(indices, spans, strict=True)):
        if index is None:
            kept.append((k, axes[d]))
        else:
            positions.append(k)
            for axis in axes[d : d + span]:
                constraints.freeze(axis, "is picked from by an index")
            freeze_indices(constraints, [index])
            mask = index.dtype in (torch.bool, torch.uint8)
            indexed.append(1 if mask else index.dim())
        d += span
    kept.extend((len(indices) + k, axis) for k, axis in enumerate(axes[d:]))
    if not positions:
        return [axis for _, axis in kept]
    adjacent = positions[-1] - positions[0] == len(positions) - 1
    insert_at = positions[0] if adjacent else 0
    before = [axis for k, axis in kept if k < insert_at]
    after = [axis for k, axis in kept if k >= insert_at]
    return [*before, *[None] * max(indexed), *after]


def freeze_indices(constraints: TraceConstraints, indices: Sequence[torch.Tensor]) -> None:
    """Channels that an index holds a number for (each one's largest value, say) can't be removed."""
    for tensor in indices:
        for axis in constraints.axes(tensor):
            constraints.freeze(axis, "is used as an index")


def index(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`tensor[indices]`."""
    if constraints.labels(args[0]):
        constraints.put(out, _after_index(constraints, args[0], args[1]), constraints.zero(args[0]))


def gather(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`gather`: picks along one axis; channels on others stay in place where all take the same pick."""
    x, dim, picks = args[:3]
    freeze_indices(constraints, [picks])
    source = constraints.labels(x)
    if source is None:
        return
    axes: list[Axis] = [None] * out.dim()
    for d, axis in enumerate(source.axes):
        if d == dim % x.dim():
            constraints.freeze(axis, "is picked from by an index")
        elif axis is not None:
            if out.shape[d] != x.shape[d] or not bool((picks == picks.narrow(d, 0, 1)).all()):
                constraints.freeze(axis, "is picked from by an index of its own for each channel")
            else:
                constraints.guess(axis)  # the index is as long as there are channels
                axes[d] = axis
    constraints.put(out, axes, source.zero[0])


def index_put(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`tensor[indices] = values`: the values label the axes that are not indexed."""
    target, indices, values = args[:3]
    axes = _after_index(constraints, target, indices)
    fixed = set()
    for axis, label, size in zip(
        reversed(axes), reversed(constraints.axes(values)), reversed(values.shape), strict=False
    ):
        if size != 1 and (axis is not None or label is not None):
            constraints.unify(axis, label, op)
            if label is None:
                fixed.add(id(axis))
    source = constraints.labels(target)
    if source:
        source.zero[0] &= constraints.zero(values)
        source.axes = tuple(None if id(axis) in fixed else axis for axis in source.axes)
        if out is not target:
            constraints.put(out, source.axes, source.zero)


def glu(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`glu`: the first half of an axis times a gate from the second."""
    source = constraints.labels(args[0])
    if source is None:
        return
    dim = (args[1] if len(args) > 1 else -1) % len(source.axes)
    axes = list(source.axes)
    axis = axes[dim]
    axes[dim] = axis if axis is None else constraints.join(axis.reshape(2, -1))
    constraints.put(out, axes, source.zero[0])


def pad(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`constant_pad_nd`: channels that padding adds are constants."""
    source = constraints.labels(args[0])
    if source is None:
        return
    axes = list(source.axes)
    for k in range(len(args[1]) // 2):
        d = len(axes) - 1 - k
        before, after = args[1][2 * k], args[1][2 * k + 1]
        axis = axes[d]
        if axis is None or not (before or after):
            continue
        if before < 0 or after < 0:
            constraints.freeze(axis, "is cropped")
            axes[d] = None
        else:
            axes[d] = np.concatenate([_fixed(constraints, before), axis, _fixed(constraints, after)])
    value = args[2] if len(args) > 2 else 0
    constraints.put(out, axes, source.zero if not value else False)


def along(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`flip`, `roll`, `cumsum`, `cumprod`, `triu`, `tril`: channels on the axes they work along can't go."""
    source = constraints.labels(args[0])
    if source is None:
        return
    if op in ("triu", "tril"):
        given: Any = (-2, -1)
    else:
        given = args[2] if op == "roll" and len(args) > 2 else () if op == "roll" else args[1]
    dims = [given] if isinstance(given, int) else list(given) or range(len(source.axes))
    axes = list(source.axes)
    for d in dims:
        constraints.freeze(axes[d], f"goes into {op} along its axis")
        axes[d] = None
    constraints.put(out, axes, source.zero[0])
