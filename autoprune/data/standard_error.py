"""The standard error of mAP over the choice of images, by bootstrap.

Images are drawn with replacement (Efron, Annals of Statistics 7(1), 1979). The matches of detections with
boxes do not depend on other images, so COCOeval's are reused; only the precision curves are recomputed, with
every image counted as often as it was drawn.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.data.evaluators import Matches

RESAMPLES = 100


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

    Args:
        matches: of the detections.
        counts: how often each image was drawn, [resamples, images].
    """
    total, classes = np.zeros(len(counts)), np.zeros(len(counts))
    for records in matches.by_class:
        of_class = _ClassMatches(records, matches.images)
        boxes = counts @ of_class.boxes
        for row in np.flatnonzero(boxes):
            total[row] += of_class.average_precision(counts[row], boxes[row], matches.recalls)
            classes[row] += 1
    undefined = np.full(len(counts), np.nan)
    return np.asarray(np.divide(total, classes, out=undefined, where=classes > 0))


class _ClassMatches:
    """The detections of one class, best score first.

    Attributes:
        boxes: ground-truth boxes of each image [images].
        image: index of each detection's image [D].
        true_positive: whether a detection matches a ground-truth box, at each IoU [T, D].
        false_positive: whether it matches none, at each IoU [T, D]; one that matches a crowd is neither.
    """

    def __init__(self, records: Sequence[tuple[int, Mapping[str, Any]]], images: int) -> None:
        """Sorts the images' matches by score, as COCOeval does."""
        self.boxes = np.zeros(images, dtype=np.int64)
        for index, record in records:
            self.boxes[index] = int(np.sum(np.asarray(record["gtIgnore"]) == 0))
        scores = np.concatenate([record["dtScores"] for _, record in records] or [np.zeros(0)])
        order = np.argsort(-scores, kind="mergesort")
        images_of = [np.full(len(record["dtScores"]), index) for index, record in records]
        self.image = np.concatenate([*images_of, np.zeros(0, np.int64)]).astype(np.int64)[order]
        if not len(order):
            self.true_positive = self.false_positive = np.zeros((1, 0), bool)
            return
        full = [record for _, record in records if len(record["dtScores"])]
        matched, ignored = (
            np.concatenate([np.asarray(record[name]) for record in full], axis=1)[:, order] != 0
            for name in ("dtMatches", "dtIgnore")
        )
        self.true_positive, self.false_positive = matched & ~ignored, ~matched & ~ignored

    def average_precision(self, counts: NDArray[np.int64], boxes: int, recalls: NDArray[np.float64]) -> float:
        """COCO's average precision: mean over IoUs of the best precision at or above each of 101 recalls."""
        weight = counts[self.image].astype(np.float64)
        both = (self.true_positive, self.false_positive)
        true, false = (np.cumsum(kind * weight, axis=1) for kind in both)
        recall = true / boxes
        precision = true / (true + false + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # recalls that are never reached
        positions = [np.searchsorted(row, recalls, side="left") for row in recall]
        return float(np.mean([row[at] for row, at in zip(best, positions, strict=True)]))
