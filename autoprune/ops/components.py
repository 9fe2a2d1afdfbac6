"""Connected components of numbers, and hashes that tell sets of numbers apart."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from autoprune.ops.labels import Atoms


def connected(size: int, pairs: Sequence[tuple[Atoms, Atoms]], start: Atoms | None = None) -> Atoms:
    """Smallest element of each element's connected component, [size], by pointer jumping.

    Args:
        size: number of elements.
        pairs: arrays of elements to connect position by position.
        start: an earlier result, whose components stay connected.
    """
    root: Atoms = np.arange(size, dtype=np.int64) if start is None else start.copy()
    if not pairs:
        return root
    a, b = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
    while True:
        root_a, root_b = root[a], root[b]
        apart = root_a != root_b
        if not apart.any():
            return root
        if not apart.all():
            a, b, root_a, root_b = a[apart], b[apart], root_a[apart], root_b[apart]
        np.minimum.at(root, np.maximum(root_a, root_b), np.minimum(root_a, root_b))
        while not np.array_equal(jumped := root[root], root):
            root = jumped


def hashed(numbers: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash (the finalizer of splitmix64), so that sums of them identify sets of numbers."""
    x = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
