"""Rules of ops that move elements and compute nothing: views, permutations, joins, splits, indexing."""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from autoprune.graph.labels import Args, Atoms, Axis, Facts

# A label longer than this (all pixels of a large image, flattened) is given up: no layer is that wide.
_LONGEST = 1 << 20
# Buffers longer than this on any axis (lists of anchors, of candidates) never hold channels.
_LONGEST_FACTORY = 1 << 16


def alias(facts: Facts, op: str, args: Args, out: Any) -> None:
    """The same elements in the same shape: `detach`, `clone`, `_to_copy`, …."""
    source = facts.labels(args[0])
    if source:
        facts.put(out, source.axes, source.zero)


def factory(facts: Facts, op: str, args: Args, out: Any) -> None:
    """A tensor made from nothing: its axes are what is first written to them."""
    if out.dim() > 1 and max(out.shape) <= _LONGEST_FACTORY:
        filled_with_zero = "zero" in op or "empty" in op or _fill_value(op, args) == 0
        axes = [facts.fresh(n) if n > 1 else None for n in out.shape]
        for axis in axes:
            if axis is not None:
                facts.guess(axis)
        facts.put(out, axes, filled_with_zero)


def _fill_value(op: str, args: Args) -> Any:
    if "full" not in op:
        return None
    return args[-1]


def factory_like(facts: Facts, op: str, args: Args, out: Any) -> None:
    """A new tensor of another's shape."""
    source = facts.labels(args[0])
    if source:
        zero = op in ("zeros_like", "empty_like") or _fill_value(op, args) == 0
        facts.put(out, source.axes, zero)


def permute(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`permute`, `transpose`, `t`."""
    source = facts.labels(args[0])
    if source is None:
        return
    dims = list(range(len(source.axes)))
    if op == "permute":
        dims = [d % len(dims) for d in args[1]]
    elif len(dims) > 1:
        a, b = (0, 1) if op == "t" else (args[1], args[2])
        dims[a], dims[b] = dims[b], dims[a]
    facts.put(out, [source.axes[d] for d in dims], source.zero)


def view(facts: Facts, op: str, args: Args, out: Any) -> None:
    """Any change of shape that keeps the order of the elements."""
    source = facts.labels(args[0])
    if source is None:
        return
    free = args[1].index(-1) if op == "view" and -1 in args[1] else None
    if [n for n in args[0].shape if n != 1] != [n for n in out.shape if n != 1]:
        # The new lengths may be literals in the code.
        for axis in source.axes:
            if axis is not None:
                facts.guess(axis)
    facts.put(out, _regroup(facts, source.axes, args[0].shape, out.shape, free), source.zero)


def _regroup(
    facts: Facts, axes: Sequence[Axis], shape: Sequence[int], new_shape: Sequence[int], free: int | None
) -> list[Axis]:
    """Labels after a change of shape: pairs up the smallest runs of axes with equal products."""
    if 0 in shape:
        return _regroup_empty(facts, axes, shape, new_shape)
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
            label = run[0][1] if len(run) == 1 else _merge(facts, run)
            if len(dims) == 1:
                result[dims[0]] = label
            elif label is not None:
                d, part = _split(
                    facts, label, [new_shape[d] for d in dims], dims.index(free) if free in dims else None
                )
                result[dims[d]] = part
    return result


def _regroup_empty(
    facts: Facts, axes: Sequence[Axis], shape: Sequence[int], new_shape: Sequence[int]
) -> list[Axis]:
    """As `_regroup`, for no elements: the axes on both sides of the empty one must go together."""
    at, new_at = list(shape).index(0), list(new_shape).index(0)
    sides = [(slice(0, at), slice(0, new_at)), (slice(at + 1, None), slice(new_at + 1, None))]
    if any(prod(shape[old]) != prod(new_shape[new]) or 0 in shape[old] for old, new in sides):
        for axis in axes:
            facts.freeze(
                axis, "changes shape without elements; give an example input that reaches all layers"
            )
        return [None] * len(new_shape)
    before, after = [_regroup(facts, axes[old], shape[old], new_shape[new], None) for old, new in sides]
    return [*before, None, *after]


def _merge(facts: Facts, run: Sequence[tuple[int, Axis]]) -> Axis:
    """The label of several axes flattened into one; expressible if just one of them is labelled."""
    labelled = [k for k, (_, axis) in enumerate(run) if axis is not None]
    size = prod(n for n, _ in run)
    if len(labelled) > 1 or size > _LONGEST:
        for _, axis in run:
            facts.freeze(
                axis, "is flattened with another axis of channels" if size <= _LONGEST else "is flattened"
            )
        return None
    k = labelled[0]
    label = run[k][1]
    assert label is not None
    before, after = prod(n for n, _ in run[:k]), prod(n for n, _ in run[k + 1 :])
    return np.tile(np.repeat(label, after), before)


def _split(facts: Facts, label: Atoms, sizes: Sequence[int], free: int | None) -> tuple[int, Atoms]:
    """The axis of ``sizes`` that takes over ``label``, and its label there.

    Where the label does not vary along the other axes (C x H x W unflattened) nothing is lost. Elsewhere the
    channels along the others become one: in a view as (groups, C / groups) channel j of all groups is
    removed at once. The axis is the one written as -1, else the longest.
    """
    grid = label.reshape(sizes)
    for d in range(len(sizes)):
        lines = np.moveaxis(grid, d, -1).reshape(-1, sizes[d])
        if (lines == lines[0]).all():
            return d, np.ascontiguousarray(lines[0])
    d = free if free is not None else max(range(len(sizes)), key=lambda k: (sizes[k], k))
    lines = np.moveaxis(grid, d, -1).reshape(-1, sizes[d])
    return d, facts.join(lines)


def expand(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`expand`: new axes in front, axes of length one stretched."""
    source = facts.labels(args[0])
    if source:
        facts.put(out, [None] * (out.dim() - len(source.axes)) + list(source.axes), source.zero)


def repeat(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`repeat`: new axes in front, every axis tiled."""
    source = facts.labels(args[0])
    if source is None:
        return
    axes = [None] * (out.dim() - len(source.axes)) + list(source.axes)
    tiled = [
        axis if axis is None or n == 1 else np.tile(axis, n) for n, axis in zip(args[1], axes, strict=True)
    ]
    facts.put(out, tiled, source.zero)


def cat(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`cat`: the joined axis concatenates labels, the others must agree."""
    parts = [part for part in args[0] if part.numel() or part.dim() == out.dim()]
    dim = (args[1] if len(args) > 1 else 0) % out.dim()
    axes = _agree(facts, op, parts, [d for d in range(out.dim()) if d != dim], out.dim())
    labels = [facts.axes(part)[dim] for part in parts]
    if any(label is not None for label in labels):
        axes[dim] = np.concatenate(
            [_fixed(facts, part.shape[dim]) if label is None else label
             for part, label in zip(parts, labels, strict=True)]
        )  # fmt: skip
    facts.put(out, axes, all(facts.zero(part) for part in parts))


def stack(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`stack`: a new axis, the others must agree."""
    dim = (args[1] if len(args) > 1 else 0) % out.dim()
    axes = _agree(facts, op, args[0], range(out.dim() - 1), out.dim() - 1)
    axes.insert(dim, None)
    facts.put(out, axes, all(facts.zero(part) for part in args[0]))


def _agree(
    facts: Facts, op: str, parts: Sequence[torch.Tensor], dims: Sequence[int], count: int
) -> list[Axis]:
    """Unifies the axes ``dims`` of all parts."""
    axes: list[Axis] = [None] * count
    every = [facts.axes(part) for part in parts]
    for d in dims:
        labels = [part_axes[d] for part_axes in every]
        if any(label is not None for label in labels):
            axes[d] = labels[0]
            for label in labels[1:]:
                axes[d] = facts.unify(axes[d], label, op)
    return axes


def _fixed(facts: Facts, count: int) -> Atoms:
    """A label for channels that are no model parameter's, inside an axis that has others."""
    atoms = facts.fresh(count)
    facts.freeze(atoms, "is a constant")
    return atoms


def split(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`split`, `split_with_sizes`, `chunk`: equal parts of channels shrink together, others are fixed."""
    source = facts.labels(args[0])
    if source is None:
        return
    dim = (args[2] if len(args) > 2 else 0) % len(source.axes)
    axis = source.axes[dim]
    pieces: list[Axis] = [None] * len(out)
    if axis is not None:
        sizes = [part.shape[dim] for part in out]
        if len(set(sizes)) == 1:
            _tie_parts(facts, axis, len(out))
        else:
            facts.freeze(axis, "is split into unequal parts")
        pieces = list(np.split(axis, np.cumsum(sizes)[:-1]))
    for part, piece in zip(out, pieces, strict=True):
        axes = [*source.axes[:dim], piece, *source.axes[dim + 1 :]]
        facts.put(part, axes, source.zero)


def _tie_parts(facts: Facts, axis: Atoms, count: int) -> None:
    if count > 1:
        facts.tie(axis.reshape(count, -1).T)
        facts.guess(axis)


def take_slice(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`slice`: one of several equal parts, like `split`; any other range of channels freezes them."""
    source = facts.labels(args[0])
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
            _tie_parts(facts, axis, length // size)
        else:
            facts.freeze(axis, "is sliced")
        axes[dim] = axis[start : start + size * step : step]
    if out.numel():
        facts.put(out, axes, source.zero)


def select(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`select`, `unbind`: picks single indices of an axis."""
    source = facts.labels(args[0])
    if source is None:
        return
    dim = (args[1] if len(args) > 1 else 0) % len(source.axes)
    facts.freeze(source.axes[dim], "is picked from by number")
    rest = source.axes[:dim] + source.axes[dim + 1 :]
    for part in out if isinstance(out, (tuple, list)) else [out]:
        facts.put(part, rest, source.zero)


def _after_index(facts: Facts, tensor: torch.Tensor, indices: Sequence[torch.Tensor | None]) -> list[Axis]:
    """Labels of ``tensor[indices]``; channels may not be picked by an index."""
    axes = list(facts.axes(tensor))
    # A boolean mask stands for as many axes as it has.
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
                facts.freeze(axis, "is picked from by an index")
            mask = index.dtype in (torch.bool, torch.uint8)
            indexed.append(1 if mask else index.dim())
        d += span
    kept.extend((len(indices) + k, axis) for k, axis in enumerate(axes[d:]))
    if not positions:
        return [axis for _, axis in kept]
    adjacent = positions[-1] - positions[0] == len(positions) - 1
    at = positions[0] if adjacent else 0
    before = [axis for k, axis in kept if k < at]
    after = [axis for k, axis in kept if k >= at]
    return [*before, *[None] * max(indexed), *after]


def index(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`tensor[indices]`."""
    if facts.labels(args[0]):
        facts.put(out, _after_index(facts, args[0], args[1]), facts.zero(args[0]))


def index_put(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`tensor[indices] = values`: what is written labels the axes that are not indexed."""
    target, indices, values = args[:3]
    axes = _after_index(facts, target, indices)
    fixed = set()
    for axis, label, size in zip(
        reversed(axes), reversed(facts.axes(values)), reversed(values.shape), strict=False
    ):
        if size != 1 and (axis is not None or label is not None):
            facts.unify(axis, label, op)
            if label is None:
                fixed.add(id(axis))
    source = facts.labels(target)
    if source:
        source.zero[0] &= facts.zero(values)
        source.axes = tuple(None if id(axis) in fixed else axis for axis in source.axes)
        if out is not target:
            facts.put(out, source.axes, source.zero)


def glu(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`glu`: the first half of an axis times a gate from the second."""
    source = facts.labels(args[0])
    if source is None:
        return
    dim = (args[1] if len(args) > 1 else -1) % len(source.axes)
    axes = list(source.axes)
    axis = axes[dim]
    axes[dim] = axis if axis is None else facts.join(axis.reshape(2, -1))
    facts.put(out, axes, source.zero[0])


def pad(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`constant_pad_nd`: padded channels are constants."""
    source = facts.labels(args[0])
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
            facts.freeze(axis, "is cropped")
            axes[d] = None
        else:
            axes[d] = np.concatenate([_fixed(facts, before), axis, _fixed(facts, after)])
    value = args[2] if len(args) > 2 else 0
    facts.put(out, axes, source.zero if not value else False)


def pixel_shuffle(facts: Facts, op: str, args: Args, out: Any) -> None:
    """`pixel_shuffle`: r·r neighbouring channels become one; `pixel_unshuffle`: one becomes r·r."""
    source = facts.labels(args[0])
    if source is None:
        return
    axes = list(source.axes)
    axis, area = axes[-3], args[1] ** 2
    if axis is not None and op == "pixel_shuffle":
        if len(axis) == area:
            facts.freeze(axis, "is shuffled into one channel")
            axes[-3] = None
        else:
            axes[-3] = facts.join(axis.reshape(-1, area).T)
    elif axis is not None:
        axes[-3] = np.repeat(axis, area)
    for d in (-1, -2):
        facts.freeze(axes[d], "is shuffled as space")
        axes[d] = None
    facts.put(out, axes, source.zero)
