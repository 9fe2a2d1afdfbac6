"""Puts groups in place of labels in the record of what carries the input's signal."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoprune.graph.groups import ChannelGroup
from autoprune.graph.signal_paths import Axes, PathOp, PathRead, SignalPaths
from autoprune.ops.labels import Atoms, Axis
from autoprune.tracing.signal_record import Read, SignalOp
from autoprune.tracing.trace import Trace


def signal_paths(
    traced: Trace, groups: Sequence[ChannelGroup], group_of: Atoms, unused: npt.NDArray[np.bool_]
) -> SignalPaths:
    """The paths of a trace whose constraints are solved.

    Args:
        traced: the trace.
        groups: all groups.
        group_of: number of each atom's group, -1 for those of none.
        unused: whether no layer reads the atom's channel.
    """
    known: dict[int, tuple[frozenset[str], bool]] = {}

    def groups_on(axis: Atoms) -> tuple[frozenset[str], bool]:
        """The prunable groups on an axis, and whether all its channels are of such."""
        if id(axis) not in known:
            numbers = np.unique(group_of[axis]).tolist()
            names = [groups[g].name for g in numbers if g >= 0 and groups[g].prunable]
            known[id(axis)] = frozenset(names), len(names) == len(numbers)
        return known[id(axis)]

    def axes_of(axes: Sequence[Axis]) -> Axes:
        each = [groups_on(axis) for axis in axes if axis is not None]
        return tuple(names for names, whole in each if whole)

    def names_of(axes: Sequence[Axis]) -> frozenset[str]:
        return frozenset().union(*(groups_on(axis)[0] for axis in axes if axis is not None))

    def read_of(read: Read) -> PathRead:
        return PathRead(read.sources, axes_of(read.axes), names_of(read.axes))

    def prediction_of(op: SignalOp) -> str | None:
        """The layer, if no other layer reads its channels; a single channel counts as such."""
        if op.layer is not None and (op.made is None or unused[op.made].any()):
            return op.layer.removesuffix(".weight")
        return None

    ops = [
        PathOp(
            reads=tuple(map(read_of, op.reads)),
            outputs=tuple(map(axes_of, op.outputs)),
            groups=frozenset().union(*map(names_of, op.outputs)),
            prediction=prediction_of(op),
        )
        for op in traced.signal.ops
    ]
    return SignalPaths(tuple(ops), tuple(map(read_of, traced.signal.ends)))
