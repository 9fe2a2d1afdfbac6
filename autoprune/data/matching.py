"""Which detections match which boxes, as COCOeval decides it, over all box sizes and for all images at once.

COCOeval takes an image's detections of a class from the best score down. Each takes the free box that it
overlaps most, a counting one before a crowd; a crowd is never used up (`COCOeval.evaluateImg`). Here the k-th
best detections of all images choose at the same time, as images do not depend on each other.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MOST = 100  # detections of an image and a class that COCOeval takes
LARGEST = 1e10  # area in square pixels up to which a box counts
Floats = NDArray[np.float64]
Indices = NDArray[np.int64]
Flags = NDArray[np.bool_]


@dataclass(frozen=True)
class ClassMatches:
    """The detections of one class, best score first, and which of them match a box.

    Attributes:
        boxes: ground-truth boxes that count in each image [images].
        image: index of each detection's image [D].
        true_positive: whether a detection matches a ground-truth box, at each IoU [T, D].
        false_positive: whether it matches none, at each IoU [T, D]; one that matches a crowd is neither.
    """

    boxes: Indices
    image: Indices
    true_positive: Flags
    false_positive: Flags


@dataclass(frozen=True)
class Boxes:
    """Boxes or detections in the order in which they are given.

    Attributes:
        image: index of the image [n].
        category: index of the class [n].
        corners: x, y, width, height [n, 4].
        last: areas of true boxes, scores of detections [n].
        crowd: whether a true box is around a crowd [n].
    """

    image: Indices
    category: Indices
    corners: Floats
    last: Floats
    crowd: Flags


def match(truth: Boxes, detected: Boxes, images: int, classes: int, ious: Floats) -> list[ClassMatches]:
    """Matches the detections of all images and classes.

    Args:
        truth: the true boxes.
        detected: the detections; ``crowd`` is not read.
        images: number of images.
        classes: number of classes.
        ious: the least IoU of a match [T].
    """
    ignored = truth.crowd | (truth.last < 0) | (truth.last > LARGEST)
    taken = _best_of_each_image(detected, classes)
    image, category, corners = detected.image[taken], detected.category[taken], detected.corners[taken]
    group, least = image * classes + category, np.minimum(ious, 1 - 1e-10)
    partner = _partners(truth, ignored, group, corners, classes, least)
    hit = partner >= 0
    to_ignored = hit & np.append(ignored, False)[partner]
    area = corners[:, 2] * corners[:, 3]
    beyond = (area < 0) | (area > LARGEST)
    true, false = hit & ~to_ignored, ~hit & ~beyond
    # as COCOeval: by score, of equal ones in the order of the images
    order = np.lexsort((np.arange(len(taken)), image, -detected.last[taken], category))
    bounds = np.searchsorted(category[order], np.arange(classes + 1))
    result = []
    for number in range(classes):
        rows = order[bounds[number] : bounds[number + 1]]
        counting = truth.image[(truth.category == number) & ~ignored]
        boxes = np.bincount(counting, minlength=images)
        result.append(ClassMatches(boxes, image[rows], true[:, rows], false[:, rows]))
    return result


def _best_of_each_image(detected: Boxes, classes: int) -> Indices:
    """Indices of the detections that count, grouped by image and class, each group best score first."""
    group = detected.image * classes + detected.category
    order = np.lexsort((np.arange(len(group)), -detected.last, group))
    return np.asarray(order[_place_in_group(group[order]) < MOST])


def _place_in_group(groups: Indices) -> Indices:
    """0, 1, … within each run of equal numbers."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


def _partners(
    truth: Boxes, ignored: Flags, group: Indices, corners: Floats, classes: int, ious: Floats
) -> Indices:
    """The box that each detection matches at each IoU [T, D]; -1 for none.

    Args:
        truth: the true boxes.
        ignored: those that do not count.
        group: image and class of the detections [D], grouped, best score first.
        corners: of the detections [D, 4].
        classes: number of classes.
        ious: the least IoU of a match [T].
    """
    partner = np.full((len(ious), len(group)), -1)
    true_group = truth.image * classes + truth.category
    by_group = np.argsort(true_group, kind="stable")
    low, high = (np.searchsorted(true_group[by_group], group, side) for side in ("left", "right"))
    count = high - low
    detection = np.repeat(np.arange(len(group)), count)
    box = by_group[np.repeat(low, count) + _place_in_group(detection)]
    overlap = _overlaps(corners[detection], truth.corners[box], truth.crowd[box])
    near = overlap >= ious.min()
    detection, box, overlap = detection[near], box[near], overlap[near]
    # what a detection prefers first: a box that counts, then the larger overlap, of equal ones the last
    order = np.lexsort((-box, -overlap, ignored[box], detection))
    detection, box, overlap = detection[order], box[order], overlap[order]
    having, pairs = np.unique(detection, return_counts=True)
    round_of = np.repeat(_place_in_group(group[having]), pairs)
    free = np.ones((len(ious), len(truth.image)), bool)
    for number in range(int(round_of.max(initial=-1)) + 1):
        at = np.flatnonzero(round_of == number)
        possible = (overlap[at] >= ious[:, None]) & free[:, box[at]]
        starts = np.flatnonzero(np.diff(detection[at], prepend=-1))
        choice = np.where(possible, np.arange(len(at)), len(at))
        choice = np.minimum.reduceat(choice, starts, axis=1)
        level, place = np.nonzero(choice < len(at))
        chosen = at[choice[level, place]]
        partner[level, detection[chosen]] = box[chosen]
        used = ~truth.crowd[box[chosen]]
        free[level[used], box[chosen][used]] = False
    return partner


def _overlaps(first: Floats, second: Floats, crowd: Flags) -> Floats:
    """IoU of pairs of boxes [n, 4]; over the area of the first where the second is a crowd."""
    (x, y, width, height), (x2, y2, width2, height2) = first.T, second.T
    wide = np.minimum(width + x, width2 + x2) - np.maximum(x, x2)
    high = np.minimum(height + y, height2 + y2) - np.maximum(y, y2)
    inside = np.maximum(wide, 0) * np.maximum(high, 0)
    union = np.where(crowd, width * height, width * height + width2 * height2 - inside)
    return np.asarray(np.divide(inside, union, out=np.zeros(len(union)), where=union > 0))


def class_matches(records: Sequence[tuple[int, dict[str, list[float]]]], images: int) -> ClassMatches:
    """The same from COCOeval's records of a class, each with the index of its image, by rising index."""
    boxes = np.zeros(images, dtype=np.int64)
    for index, record in records:
        boxes[index] = int(np.sum(np.asarray(record["gtIgnore"]) == 0))
    scores = np.concatenate([record["dtScores"] for _, record in records] or [[]])
    order = np.argsort(-scores, kind="mergesort")
    images_of = [np.full(len(record["dtScores"]), index) for index, record in records]
    image = np.concatenate([*images_of, np.zeros(0, np.int64)]).astype(np.int64)[order]
    if not len(order):
        return ClassMatches(boxes, image, np.zeros((1, 0), bool), np.zeros((1, 0), bool))
    full = [record for _, record in records if len(record["dtScores"])]
    matched, ignored = (
        np.concatenate([np.asarray(record[name]) for record in full], axis=1)[:, order] != 0
        for name in ("dtMatches", "dtIgnore")
    )
    return ClassMatches(boxes, image, matched & ~ignored, ~matched & ~ignored)
