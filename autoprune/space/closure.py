"""Adds to widths with emptied groups what serves nothing without them."""

import numpy as np
from numpy.typing import NDArray

from autoprune.graph import ChannelGraph

Widths = NDArray[np.int64]


class Closure:
    """Sets further widths to 0: see `SignalPaths.closed`.

    What is made from nothing but constants, as the layers before read emptied groups, is emptied too where
    the space allows it: it carries no signal, and reconstruction fits the constant that remains.

    Args:
        graph: the channel groups.
        may_empty: [G], the groups that the space may empty.
    """

    def __init__(self, graph: ChannelGraph, may_empty: NDArray[np.bool_]) -> None:
        self._graph, self._may_empty = graph, may_empty
        self._known: dict[bytes, NDArray[np.bool_]] = {}

    def __call__(self, widths: Widths) -> Widths:
        """The closed widths [..., G]; the same array where no group that the space may empty is 0."""
        zero = (widths == 0) & self._may_empty
        if not zero.any():
            return widths
        rows = zero.reshape(-1, zero.shape[-1])
        keys = [row.tobytes() for row in np.packbits(rows, axis=1)]
        unknown = {key: number for number, key in enumerate(keys) if key not in self._known}
        if unknown:
            closed = self._closed(rows[list(unknown.values())])
            self._known.update(zip(unknown, closed, strict=True))
        empty = np.stack([self._known[key] for key in keys]).reshape(zero.shape)
        return np.where(empty, 0, widths)

    def _closed(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """For each set of emptied groups, [n, G], the closed set."""
        names, count = self._graph.cost.names, len(rows)
        emptied = {
            name: int.from_bytes(np.packbits(column, bitorder="little").tobytes(), "little")
            for name, column in zip(names, rows.T, strict=True)
            if column.any()
        }
        constant = [name for name, may in zip(names, self._may_empty, strict=True) if may]
        closed = self._graph.paths.closed(emptied, count, constant, self._graph.emptiable)
        result = rows.copy()
        for name, bits in closed.items():
            packed = np.frombuffer(bits.to_bytes((count + 7) // 8, "little"), dtype=np.uint8)
            result[:, names.index(name)] = np.unpackbits(packed, count=count, bitorder="little")
        return result
