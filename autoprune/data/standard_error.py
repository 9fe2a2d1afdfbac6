"""The standard error of mAP over the choice of images, by bootstrap.

Images are drawn with replacement (Efron, Annals of Statistics 7(1), 1979). The matches of detections with
boxes do not depend on other images, so COCOeval's are reused; only the precision curves are recomputed, with
every image counted as often as it was drawn.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import embedding_bag

from autoprune.data.evaluators import Matches
from autoprune.data.matching import ClassMatches
from autoprune.data.rivals import RESAMPLES

BLOCK = 1000  # resamples that are computed at once
Floats = NDArray[np.float32]


def standard_error(maps: Sequence[float]) -> float:
    """Standard error of mAP, as a fraction: the standard deviation over resamples; 0 for a single image.

    Args:
        maps: mAP on each resample; see `bootstrap_maps`.
    """
    return float(np.nanstd(maps, ddof=1)) if len(maps) > 1 else 0.0


def paired_error(first: Sequence[float], second: Sequence[float]) -> float:
    """Standard error of the difference of two detectors' mAP on the same images, as a fraction.

    Both are measured on the same resamples, so what makes images easy or hard for both cancels.

    Args:
        first: mAP of one detector on each resample; see `bootstrap_maps`.
        second: mAP of the other.
    """
    return standard_error((np.asarray(first) - np.asarray(second)).tolist())


def bootstrap_maps(matches: Matches, resamples: int = RESAMPLES, seed: int = 0) -> list[float]:
    """The mAP on each of several resamples of the images, the same for all detectors; empty for one image.

    Args:
        matches: of the detections.
        resamples: number of bootstrap samples.
        seed: of the samples.
    """
    images = matches.images
    if images == 1:
        return []
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    maps: list[float] = resampled_map(matches, drawn).tolist()
    return maps


def resampled_map(matches: Matches, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mAP [resamples] with each image counted ``counts`` times; NaN where no boxes are drawn.

    The result has the precision of float32.

    Args:
        matches: of the detections.
        counts: how often each image was drawn, [resamples, images].
    """
    parts = [counts[start : start + BLOCK] for start in range(0, len(counts), BLOCK)]
    return np.concatenate([np.zeros(0), *(_block_map(matches, part) for part in parts)])


def _block_map(matches: Matches, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    weights = np.ascontiguousarray(counts.T, np.float32)
    boxes = np.stack([each.boxes for each in matches.by_class]).astype(np.float64) @ counts.T.astype(
        np.float64
    )
    most = max((int(each.true_positive.sum(1).max(initial=0)) for each in matches.by_class), default=0)
    # memory that is kept: with new arrays, most of the time would go into the system's clearing of pages
    buffers = [np.empty((most, len(counts)), np.float32) for _ in range(4)]
    total = np.zeros(len(counts))
    for each, drawn in zip(matches.by_class, boxes, strict=True):
        total += _average_precision(each, weights, np.maximum(drawn, 1), matches.recalls, buffers)
    classes = (boxes > 0).sum(0)
    undefined = np.full(len(counts), np.nan)
    return np.asarray(np.divide(total, classes, out=undefined, where=classes > 0))


def _average_precision(
    matches: ClassMatches,
    weights: Floats,
    boxes: NDArray[np.float64],
    recalls: NDArray[np.float64],
    buffers: list[Floats],
) -> NDArray[np.float64]:
    """COCO's average precision of a class in each resample [R]: 0 where it has no boxes there.

    That is the mean over IoUs of the best precision at or above each of 101 recalls. Precision is best at
    true positives, and recall rises there alone; so only their rows are computed, for all resamples at once.
    Each counts as often as recalls are first reached with it.

    Args:
        matches: of the class.
        weights: how often each image was drawn, [images, R].
        boxes: of the class in each resample, at least 1 [R].
        recalls: at which the precision is read.
        buffers: four arrays of R columns, and as many rows as there are true positives at an IoU.
    """
    result = np.zeros(len(boxes))
    special = np.flatnonzero(matches.true_positive.any(0))
    if not len(special):
        return result
    image, ignored = matches.image, ~(matches.true_positive | matches.false_positive)
    # all detections down to each that is a true positive at some IoU
    starts = torch.from_numpy(np.concatenate([[0], special[:-1] + 1]))
    above = torch.from_numpy(image[: special[-1] + 1])
    drawn = embedding_bag(above, torch.from_numpy(weights), starts, mode="sum").numpy()
    _accumulate(np.add, drawn)
    reached = _RecallsReached(boxes, recalls)
    for row, is_ignored in zip(matches.true_positive, ignored, strict=True):
        if not len(at := np.flatnonzero(row)):
            continue
        true, precision, level, gain = (each[: len(at)] for each in buffers)
        np.take(weights, image[at], axis=0, out=true, mode="clip")
        np.take(drawn, np.searchsorted(special, at), axis=0, out=precision, mode="clip")
        if len(without := np.flatnonzero(is_ignored)):
            removed = np.cumsum(weights[image[without]], axis=0)
            before = np.searchsorted(without, at)
            precision[before > 0] -= removed[before[before > 0] - 1]
        _accumulate(np.add, true)
        np.divide(true, np.maximum(precision, 1, out=precision), out=precision)
        _accumulate(np.maximum, precision[::-1])
        reached.count(true, level)
        np.subtract(level[1:], level[:-1], out=gain[1:])
        gain[1:] *= precision[1:]
        result += precision[0] * level[0] + gain[1:].sum(0, dtype=np.float64)
    return result / (len(recalls) * len(matches.true_positive))


def _accumulate(operation: np.ufunc, rows: Floats) -> None:
    """`operation.accumulate` down the rows, in place: ten times as fast, for whole rows lie together."""
    for above, row in pairwise(rows):
        operation(row, above, out=row)


class _RecallsReached:
    """How many of COCO's recalls so many true positives reach, in each resample.

    Args:
        boxes: of the class in each resample, at least 1 [R].
        recalls: 0, 0.01, …, 1.
    """

    def __init__(self, boxes: NDArray[np.float64], recalls: NDArray[np.float64]) -> None:
        percent = len(recalls) - 1
        self._scale, self._margin = (percent / boxes).astype(np.float32), (0.3 / boxes).astype(np.float32)
        # Some of the recalls are an ulp above j / 100, so that j / 100 does not reach them. Where a number of
        # true positives can give just that, the numbers that are reached are looked up.
        beyond = np.flatnonzero(recalls > np.arange(percent + 1) / percent)
        self._tied = np.flatnonzero(((boxes[:, None] * beyond) % percent == 0).any(1))
        numbers, place = np.unique(boxes[self._tied].astype(np.int64), return_inverse=True)
        self._starts = np.concatenate([[0], np.cumsum(numbers + 1)])[place]
        tables = [np.searchsorted(recalls, np.arange(each + 1) / each, side="right") for each in numbers]
        self._table = np.concatenate([np.zeros(0, np.int64), *tables]).astype(np.float32)

    def count(self, true: Floats, out: Floats) -> None:
        """Writes the number for each count of true positives [P, R]."""
        np.multiply(true, self._scale, out=out)
        out += self._margin
        np.floor(out, out=out)
        out += 1
        out[:, self._tied] = self._table[true[:, self._tied].astype(np.int64) + self._starts]
