"""Which points no other beats: non-dominated sorting, crowding, and the front.

Deb, Pratap, Agarwal, Meyarivan: A fast and elitist multiobjective genetic algorithm: NSGA-II,
IEEE Transactions on Evolutionary Computation 6(2), 2002.
"""

from bisect import bisect_right
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
    distinct, inverse = np.unique(values, axis=0, return_inverse=True)  # sorted, so none beats an earlier one
    ranks_of_distinct = _ranks_of_two(distinct) if values.shape[1] <= 2 else _ranks_of_many(distinct)
    return ranks_of_distinct[inverse.reshape(len(values))]


def _ranks_of_two(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Ranks of distinct rows [N, M], sorted, M at most 2, in O(N log N).

    An earlier row is no worse in the first column; so a row is beaten by a front exactly where the least
    value of the second column in it is no greater. These least values rise from front to front.
    """
    result = np.zeros(len(values), dtype=np.int64)
    least: list[float] = []
    for place, value in enumerate((values[:, 1] if values.shape[1] > 1 else np.zeros(len(values))).tolist()):
        result[place] = rank = bisect_right(least, value)
        least[rank : rank + 1] = [value]
    return result


def _ranks_of_many(values: npt.NDArray[np.float64]) -> npt.NDArray[np.int64]:
    """Ranks of distinct rows [N, M], sorted: each row joins the first front that does not beat it.

    The efficient non-dominated sort with binary search of Zhang, Tian, Cheng, Jin (IEEE Transactions on
    Evolutionary Computation 19(2), 2015): what a front beats, every front before it beats too.
    """
    result = np.zeros(len(values), dtype=np.int64)
    fronts: list[list[int]] = []
    for place, value in enumerate(values):
        low, high = 0, len(fronts)
        while low < high:
            middle = (low + high) // 2
            beaten = bool((values[fronts[middle]] <= value).all(axis=1).any())
            low, high = (middle + 1, high) if beaten else (low, middle)
        if low == len(fronts):
            fronts.append([])
        fronts[low].append(place)
        result[place] = low
    return result


def crowding(points: Points, directions: Sequence[Direction]) -> npt.NDArray[np.float64]:
    """Crowding distance of each point among points of one rank; the ends have infinity.

    For each objective, a point gets the gap between its two neighbors over the objective's range.
    An objective in which all are equal tells nothing and is omitted.

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
    for level in np.flatnonzero(np.bincount(rank, minlength=1) > 2):  # two are both at the ends
        here = np.flatnonzero(rank == level)
        distance[here] = crowding([points[int(index)] for index in here], directions)
    return np.lexsort((-distance, rank))


def merge(points: Points, directions: Sequence[Direction], tolerance: float) -> npt.NDArray[np.float64]:
    """The same points, where costs that hardly differ are one.

    A cost that is at most ``tolerance`` above another one, as a fraction of it, takes that value; then a
    point that is better otherwise beats it, and one of two that hardly differ stays on the front.

    Args:
        points: [N, M] objective values.
        directions: M directions; costs are what is minimized.
        tolerance: fraction of a cost.
    """
    merged = np.array(points, np.float64).reshape(len(points), len(directions))
    for column, direction in enumerate(directions):
        if direction == "maximize":
            continue
        start = -np.inf
        for row in np.argsort(merged[:, column], kind="stable"):
            if merged[row, column] > start + abs(start) * tolerance or not np.isfinite(start):
                start = merged[row, column]
            merged[row, column] = start
    return merged


def front(points: Points, directions: Sequence[Direction]) -> list[int]:
    """Indices of the points that no other dominates, rising.

    Args:
        points: [N, M] objective values.
        directions: M directions.
    """
    return [int(index) for index in np.flatnonzero(ranks(points, directions) == 0)]
