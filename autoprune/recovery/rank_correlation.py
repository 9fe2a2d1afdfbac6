"""Rank correlations with bootstrap intervals, over stacks of samples at once."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000

Vector = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True)
class Estimate:
    """A rank correlation with its 95% bootstrap interval; ``None`` where all values are equal."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Such as ``0.86 (0.55 to 0.97)``."""
        if self.value is None or self.low is None or self.high is None:
            return "undefined" if self.value is None else f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


def spearman(first: Vector, second: Vector) -> Vector:
    """Spearman's rank correlation of each row [..., n]; NaN where one of the two is constant. Shape [...]."""
    # The rank of a value, ties averaged, is half the sum of its signs to all values, plus (n + 1) / 2.
    x, y = (_signs(values).sum(axis=-1) for values in (first, second))
    return _ratio((x * y).sum(axis=-1), (x * x).sum(axis=-1) * (y * y).sum(axis=-1))


def kendall(first: Vector, second: Vector) -> Vector:
    """Kendall's tau-b of each row [..., n]; NaN where one of the two is constant. Shape [...]."""
    x, y = _signs(first), _signs(second)
    pairs = (-2, -1)
    return _ratio((x * y).sum(axis=pairs), (x * x).sum(axis=pairs) * (y * y).sum(axis=pairs))


def estimate(statistic: Callable[[Vector, Vector], Vector], first: Vector, second: Vector) -> Estimate:
    """A statistic of pairs [n], and its percentile interval over resampled pairs.

    Efron: Bootstrap methods: another look at the jackknife, The Annals of Statistics 7(1), 1979.
    """
    value = float(statistic(first, second))
    if not math.isfinite(value):
        return Estimate(None, None, None)
    rows = np.random.default_rng(0).integers(len(first), size=(RESAMPLES, len(first)))
    resampled = statistic(first[rows], second[rows])
    low, high = np.percentile(resampled[np.isfinite(resampled)], [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def _signs(values: Vector) -> Vector:
    """Whether each of n values is above (1), equal to (0) or below (-1) each other one, [..., n, n]."""
    return np.asarray(np.sign(values[..., :, None] - values[..., None, :]))


def _ratio(product: Vector, squares: Vector) -> Vector:
    undefined = np.full(np.shape(product), np.nan)
    return np.asarray(np.divide(product, np.sqrt(squares), out=undefined, where=squares > 0))
