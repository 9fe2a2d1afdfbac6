"""Rules of changes of shape and order: views, permutations, expansions."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from autoprune.ops.labels import Args, Atoms, Axis, TraceConstraints

# Longer labels (all pixels of a large image, flattened) are dropped: no layer is that wide.
_LONGEST = 1 << 20


def permute(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`permute`, `transpose`, `t`."""
    source = constraints.labels(args[0])
    if source is None:
        return
    dims = list(range(len(source.axes)))
    if op == "permute":
        dims = [d % len(dims) for d in args[1]]
    elif len(dims) > 1:
        a, b = (0, 1) if op == "t" else (args[1], args[2])
        dims[a], dims[b] = dims[b], dims[a]
    constraints.put(out, [source.axes[d] for d in dims], source.zero)


def view(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Any change of shape that keeps the order of the elements."""
    source = constraints.labels(args[0])
    if source is None:
        return
    kept = [(n, axis) for n, axis in zip(args[0].shape, source.axes, strict=True) if n != 1]
    same = [n for n, _ in kept] == [n for n in out.shape if n != 1]
    # The new lengths may be literals in the code.
    if op == "view" or not same:
        for axis in source.axes:
            if axis is not None:
                constraints.guess(axis)
    if same:
        moved = iter(kept)
        constraints.put(out, [None if n == 1 else next(moved)[1] for n in out.shape], source.zero)
        return
    free = args[1].index(-1) if op == "view" and -1 in args[1] else None
    constraints.put(out, _regroup(constraints, source.axes, args[0].shape, out.shape, free), source.zero)


def squeeze(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`squeeze`: the axis of a single channel would go with it, so channels go and stay in pairs."""
    chosen = args[1] if len(args) > 1 else range(args[0].dim())
    dims = {d % args[0].dim() for d in ([chosen] if isinstance(chosen, int) else chosen)}
    for d, axis in enumerate(constraints.axes(args[0])):
        if d in dims and axis is not None and len(np.unique(axis)) == len(axis):
            pair = np.minimum(np.arange(len(axis)), max(len(axis) - 2, 0)) // 2  # the last may be three
            constraints.tie(np.stack([axis[2 * pair], axis], axis=1))
    view(constraints, op, args, out)


def _regroup(
    constraints: TraceConstraints,
    axes: Sequence[Axis],
    shape: Sequence[int],
    new_shape: Sequence[int],
    free: int | None,
) -> list[Axis]:
    """Labels after a change of shape: pairs up the smallest runs of axes with equal products."""
    if 0 in shape:
        return _regroup_empty(constraints, axes, shape, new_shape)
    result: list[Axis] = [None] * len(new_shape)
    old = [(n, axis) for n, axis in zip(shape, axes, strict=True) if n != 1]
    new = [d for d, n in enumerate(new_shape) if n != 1]
    i = j = 0
    while i < len(old):
        first_old, first_new = i, j
        old_size, new_size = old[i][0], new_shape[new[j]]
        while old_size != new_size:
            if old_size < new_size:
                i += 1
                old_size *= old[i][0]
            else:
                j += 1
                new_size *= new_shape[new[j]]
        i, j = i + 1, j + 1
        run, dims = old[first_old:i], new[first_new:j]
        if any(axis is not None for _, axis in run):
            label = run[0][1] if len(run) == 1 else _merge(constraints, run)
            if len(dims) == 1:
                result[dims[0]] = label
            elif label is not None:
                d, part = _split(
                    constraints,
                    label,
                    [new_shape[d] for d in dims],
                    dims.index(free) if free in dims else None,
                )
                result[dims[d]] = part
    return result


def _regroup_empty(
    constraints: TraceConstraints, axes: Sequence[Axis], shape: Sequence[int], new_shape: Sequence[int]
) -> list[Axis]:
    """As `_regroup`, for a tensor without elements: axes on either side of the empty one correspond."""
    empty, new_empty = list(shape).index(0), list(new_shape).index(0)
    sides = [
        (slice(0, empty), slice(0, new_empty)),
        (slice(empty + 1, None), slice(new_empty + 1, None)),
    ]
    if any(prod(shape[old]) != prod(new_shape[new]) or 0 in shape[old] for old, new in sides):
        for axis in axes:
            constraints.freeze(
                axis, "changes shape without elements; give an example input that reaches all layers"
            )
        return [None] * len(new_shape)
    before, after = [_regroup(constraints, axes[old], shape[old], new_shape[new], None) for old, new in sides]
    return [*before, None, *after]


def _merge(constraints: TraceConstraints, run: Sequence[tuple[int, Axis]]) -> Axis:
    """The label of several axes flattened into one: of the longest that may lose channels; others may not."""
    size = prod(n for n, _ in run)
    if size > _LONGEST:
        for _, axis in run:
            constraints.freeze(axis, "is flattened")
        return None
    labeled = [k for k, (_, axis) in enumerate(run) if axis is not None]
    k = max(labeled, key=lambda k: (not constraints.fixed(run[k][1]), run[k][0]))
    for other in labeled:
        if other != k:
            constraints.freeze(run[other][1], "is flattened with another axis of channels")
    label = run[k][1]
    assert label is not None
    before, after = prod(n for n, _ in run[:k]), prod(n for n, _ in run[k + 1 :])
    return np.tile(np.repeat(label, after), before)


def _split(
    constraints: TraceConstraints, label: Atoms, sizes: Sequence[int], free: int | None
) -> tuple[int, Atoms]:
    """The axis of ``sizes`` that ``label`` moves to, and its label there.

    Where the label does not vary along the other axes (C x H x W unflattened), nothing is lost. Otherwise the
    channels along the others become one: in a view as (groups, C / groups), channel j of all groups is
    removed at once. The axis is the one given as -1, else the longest.
    """
    grid = label.reshape(sizes)
    for d in range(len(sizes)):
        lines = np.moveaxis(grid, d, -1).reshape(-1, sizes[d])
        if (lines == lines[0]).all():
            return d, np.ascontiguousarray(lines[0])
    d = free if free is not None else max(range(len(sizes)), key=lambda k: (sizes[k], k))
    lines = np.moveaxis(grid, d, -1).reshape(-1, sizes[d])
    return d, constraints.join(lines)


def expand(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`expand`: new axes in front, axes of length one stretched."""
    source = constraints.labels(args[0])
    if source:
        constraints.put(out, [None] * (out.dim() - len(source.axes)) + list(source.axes), source.zero)


def repeat(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`repeat`: new axes in front, every axis tiled."""
    source = constraints.labels(args[0])
    if source is None:
        return
    axes = [None] * (out.dim() - len(source.axes)) + list(source.axes)
    tiled = [
        axis if axis is None or n == 1 else np.tile(axis, n) for n, axis in zip(args[1], axes, strict=True)
    ]
    constraints.put(out, tiled, source.zero)


def channel_shuffle(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`channel_shuffle`: as (groups, C / groups) transposed; channel j of all groups is removed at once."""
    source = constraints.labels(args[0])
    if source is None:
        return
    axes = list(source.axes)
    if axes[1] is not None:
        rows = axes[1].reshape(args[1], -1)
        constraints.tie(rows.T)
        constraints.guess(axes[1])
        axes[1] = rows.T.ravel()
    constraints.put(out, axes, source.zero[0])


def pixel_shuffle(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """`pixel_shuffle`: r·r neighboring channels become one; `pixel_unshuffle`: one becomes r·r."""
    source = constraints.labels(args[0])
    if source is None:
        return
    axes = list(source.axes)
    axis, area = axes[-3], args[1] ** 2
    if axis is not None and op == "pixel_shuffle":
        if len(axis) == area:
            constraints.freeze(axis, "is shuffled into one channel")
            axes[-3] = None
        else:
            axes[-3] = constraints.join(axis.reshape(-1, area).T)
    elif axis is not None:
        axes[-3] = np.repeat(axis, area)
    for d in (-1, -2):
        constraints.freeze(axes[d], "is shuffled as space")
        axes[d] = None
    constraints.put(out, axes, source.zero)
