"""How far mAP would be off on other images of the same kind: its standard error, by a bootstrap over images.

Images are drawn with replacement (Efron, Annals of Statistics 7(1), 1979). Matches of detections and boxes do
not depend on other images, so COCOeval's are taken as they are and only its precision curves are made anew,
with every image counting as often as it was drawn.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools.cocoeval import COCOeval

RESAMPLES = 100


def standard_error(result: COCOeval, resamples: int = RESAMPLES, seed: int = 0) -> float:
    """Standard deviation of mAP over resampled images, as a fraction; 0 for a single image.

    Args:
        result: COCOeval after `evaluate`.
        resamples: how many sets of images are drawn.
        seed: decides which.
    """
    images = len(result.params.imgIds)
    drawn = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=resamples)
    values = resampled_map(result, drawn)
    return float(np.nanstd(values, ddof=1)) if images > 1 else 0.0


def resampled_map(result: COCOeval, counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """MAP [resamples] where each image counts as often as ``counts`` says; NaN where no boxes are left.

    Args:
        result: COCOeval after `evaluate`, its images in the order of ``params.imgIds``.
        counts: how often, [resamples, images].
    """
    recalls = np.asarray(result.params.recThrs)
    total, classes = np.zeros(len(counts)), np.zeros(len(counts))
    for place in range(len(result.params.catIds)):
        found = _Matches.of(result, place)
        boxes = counts @ found.boxes
        for row in np.flatnonzero(boxes):
            total[row] += found.average_precision(counts[row], boxes[row], recalls)
            classes[row] += 1
    undefined = np.full(len(counts), np.nan)
    return np.asarray(np.divide(total, classes, out=undefined, where=classes > 0))


class _Matches:
    """What was found of one class, best score first.

    Attributes:
        boxes: true boxes of each image [images].
        image: place of each detection's image [D].
        right: whether a detection meets a true box, at each IoU [T, D].
        wrong: whether it meets none, at each IoU [T, D]; one that meets a crowd is neither.
    """

    def __init__(
        self, boxes: NDArray[np.int64], parts: Sequence[tuple[int, dict[str, Any]]], most: int
    ) -> None:
        """Puts the images' matches in the order of their scores, as COCOeval does."""
        self.boxes = boxes
        scores = np.concatenate([part["dtScores"][:most] for _, part in parts] or [np.zeros(0)])
        order = np.argsort(-scores, kind="mergesort")
        where = [np.full(len(part["dtScores"][:most]), place) for place, part in parts]
        self.image = np.concatenate([*where, np.zeros(0, np.int64)]).astype(np.int64)[order]
        if not len(order):
            self.right = self.wrong = np.zeros((1, 0), bool)
            return
        matched = np.concatenate([part["dtMatches"][:, :most] for _, part in parts], axis=1)[:, order] != 0
        ignored = np.concatenate([part["dtIgnore"][:, :most] for _, part in parts], axis=1)[:, order] != 0
        self.right, self.wrong = matched & ~ignored, ~matched & ~ignored

    @staticmethod
    def of(result: COCOeval, place: int) -> "_Matches":
        """Those of the class at ``place``, over all sizes of boxes and with the most detections allowed."""
        images, areas = len(result.params.imgIds), len(result.params.areaRng)
        first = place * areas * images
        parts = [
            (i, part) for i, part in enumerate(result.evalImgs[first : first + images]) if part is not None
        ]
        boxes = np.zeros(images, dtype=np.int64)
        for i, part in parts:
            boxes[i] = int(np.sum(np.asarray(part["gtIgnore"]) == 0))
        return _Matches(boxes, parts, result.params.maxDets[-1])

    def average_precision(self, counts: NDArray[np.int64], boxes: int, recalls: NDArray[np.float64]) -> float:
        """COCO's average precision: mean over IoUs of the best precision at or beyond each of 101 recalls."""
        weight = counts[self.image].astype(np.float64)
        right, wrong = (np.cumsum(which * weight, axis=1) for which in (self.right, self.wrong))
        recall = right / boxes
        precision = right / (right + wrong + np.spacing(1))
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        best = np.concatenate([best, np.zeros((len(best), 1))], axis=1)  # recalls that are not reached
        at = [np.searchsorted(row, recalls, side="left") for row in recall]
        return float(np.mean([row[places] for row, places in zip(best, at, strict=True)]))
