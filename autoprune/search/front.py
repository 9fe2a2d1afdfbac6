"""Which points no other beats: non-dominated sorting, crowding, and the front.

Deb, Pratap, Agarwal, Meyarivan: A fast and elitist multiobjective genetic algorithm: NSGA-II,
IEEE Transactions on Evolutionary Computation 6(2), 2002.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

Direction = Literal["maximize", "minimize"]
Points = Sequence[Sequence[float]] | npt.NDArray[np.float64]


def losses(points: Points, directions: Sequence[Direction]) -> npt.NDArray[np.float64]:
    """Turns points into an array where less is better in every column.

    Args:
        points: [N, M] objective values.
        directions: M directions.

    Returns:
        float64 [N, M].

    Raises:
        ValueError: a point has another number of objectives, or holds NaN.
    """
    array = np.asarray(points, dtype=np.float64)
    if not len(array):
        return np.empty((0, len(directions)))
    if array.shape != (len(points), len(directions)):
        raise ValueError(f"points of shape {array.shape} do not have {len(directions)} objectives each")
    if np.isnan(array).any():
        raise ValueError("points must not hold NaN")
    signs = np.array([-1.0 if direction == "maximize" else 1.0 for direction in directions])
    return np.asarray(array * signs)


def ranks(points: Points, directions: Sequence[Direction]) -> npt.NDArray[np.int64]:
    """Non-dominated rank of each point: 0 is the front, 1 the front of the others, and so on.

    A point dominates another where it is no worse in all objectives and better in one, so equal
    points share a rank.

    Args:
        points: [N, M] objective values.
        directions: M directions.

    Returns:
        int64 [N].
    """
    values = losses(points, directions)
    result = np.full(len(values), -1, dtype=np.int64)
    left = np.arange(len(values))
    rank = 0
    while len(left):
        here = values[left]
        no_worse = (here[:, None, :] <= here[None, :, :]).all(axis=2)
        better = (here[:, None, :] < here[None, :, :]).any(axis=2)
        dominated = (no_worse & better).any(axis=0)
        result[left[~dominated]] = rank
        left = left[dominated]
        rank += 1
    return result


def crowding(points: Points, directions: Sequence[Direction]) -> npt.NDArray[np.float64]:
    """Crowding distance of each point among points of one rank; the ends have infinity.

    For each objective, a point gets the gap between its two neighbours over the objective's range.
    An objective in which all are equal tells nothing and is left out.

    Args:
        points: [N, M] objective values of one rank.
        directions: M directions.

    Returns:
        float64 [N].
    """
    values = losses(points, directions)
    distance = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]] if len(order) else 0.0
        if spread == 0:
            continue
        distance[order[[0, -1]]] = np.inf
        distance[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return distance


def order(points: Points, directions: Sequence[Direction]) -> npt.NDArray[np.int64]:
    """Indices of the points from best to worst: by rank, then from the least crowded, then as given.

    Args:
        points: [N, M] objective values.
        directions: M directions.

    Returns:
        int64 [N].
    """
    rank = ranks(points, directions)
    distance = np.zeros(len(rank))
    for level in np.unique(rank):
        here = np.flatnonzero(rank == level)
        distance[here] = crowding([points[int(index)] for index in here], directions)
    return np.lexsort((-distance, rank))


def front(points: Points, directions: Sequence[Direction]) -> list[int]:
    """Indices of the points that no other dominates, rising.

    Args:
        points: [N, M] objective values.
        directions: M directions.
    """
    return [int(index) for index in np.flatnonzero(ranks(points, directions) == 0)]
