"""Whether the labels fit the detector: its mAP on a few images against that with other labels."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import nn

from autoprune.data.coco import Split
from autoprune.data.detections import detect
from autoprune.data.evaluate import score_detections
from autoprune.data.evaluators import BOX, CATEGORY, IMAGE, SCORE, Detections
from autoprune.data.labels import SHOWN, as_option, describe
from autoprune.errors import ConfigError, ModelError
from autoprune.progress import say

IMAGES = 16
"""Images that the detector is run on."""
IOU = 0.5
LEAST_BOXES = 5
"""Boxes of one category that must be found under another label before boxes suggest any other labels."""
LEAST_MAP = 0.2
"""Below this mAP of the best mapping none is proposed. At a wrong input size, a detector of 84 mAP scored 0
with its own labels and 9 with the best wrong ones; the weakest detector of torchvision has 21 on COCO."""
LEAST_GAIN = 0.1
LEAST_FACTOR = 2.0
"""By how much the mAP of the changed classes must be larger with other labels: noise and weak detectors gain
less. On 16 images of blood cells a right mapping of a detector of 44 mAP gains nothing from another one."""

CategoryIds = Mapping[int, int]
"""Category id of each label."""
Votes = Counter[tuple[int, int]]
"""Number of boxes by label and category id."""


def check_labels(
    model: nn.Module,
    split: Split,
    classes: int,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    images: int | None = None,
    given: bool = False,
    must_find: bool = False,
) -> None:
    """Compares the labels of a split with those shifted by one and those that the detector's boxes suggest.

    A detector that is poor with all of them tells nothing about labels: that is said, and none is proposed;
    others are named where they are better by more than noise.

    Args:
        model: the detector, on ``device``.
        split: images at its size.
        classes: of its head, background included.
        device: of the images.
        batch_size: images per forward pass.
        images: take them from the first of this number; ``None``: from all.
        given: the user gave the labels, so another mapping is only said.
        must_find: refuse a detector that finds nothing, on which a search would be lost.

    Raises:
        ModelError: the detector finds nothing, and ``must_find``.
        ConfigError: another mapping is far better and the user did not give the labels.
    """
    chosen = _choose(split, images)
    if not chosen:
        return
    everything = copy.copy(split)
    everything.category_ids = {label: label for label in range(classes + 1)}
    detections = detect(model, everything, chosen, device, batch_size)
    if not len(detections):
        problem = f"the detector finds nothing on {len(chosen)} images with boxes of {split.name}"
        if must_find:
            raise ModelError(f"{problem}; give the weights of a trained detector, or its --model-arguments")
        say(problem)
        return
    # categories that the file does not list get ids that no box has
    own = {label: split.category_ids.get(label, -1 - label) for label in split.categories}
    votes = _votes(split, chosen, detections)
    compared = _compare(own, votes, split, chosen, detections)
    if compared.highest < LEAST_MAP:
        say(_poor(compared, split, len(chosen)))
        return
    if compared.best is own:
        return
    names = {number: split.categories[label] for label, number in own.items()}
    better = {label: names[number] for label, number in compared.best.items()}
    text = (
        f"the labels do not fit the detector: on {len(chosen)} images of {split.name} its mAP is "
        f"{100 * compared.own_map:.1f} with the labels {describe(split.categories)}, and "
        f"{100 * compared.best_map:.1f} with {describe(better)}"
    )
    undecided = [names[number] for label, number in compared.best.items() if not votes[label, number]]
    if compared.is_suggested and undecided:
        more = ", …" if len(undecided) > SHOWN else ""
        text += f" (undecided, as no box shows their labels: {', '.join(undecided[:SHOWN])}{more})"
    if given:
        say(f"{text}; those that were given are used")
        return
    raise ConfigError(
        f"{text}; give --labels {as_option(better)} (YAML: labels), or, to keep them, "
        f"--labels {as_option(split.categories)}"
    )


class _Compared(NamedTuple):
    """What other labels are worth beside a split's own.

    Attributes:
        own: the split's mapping.
        best: the mapping that is better than it by more than noise; ``own`` where none is.
        own_map: mAP with ``own``, a fraction.
        best_map: mAP with ``best``; 0 where that is ``own``.
        highest: mAP of the best of all mappings.
        is_suggested: whether ``best`` is what the detector's boxes suggest, and not a shift by one.
    """

    own: CategoryIds
    best: CategoryIds
    own_map: float
    best_map: float
    highest: float
    is_suggested: bool


def _compare(
    own: CategoryIds, votes: Votes, split: Split, chosen: Sequence[int], detections: Detections
) -> _Compared:
    """Measures the labels shifted by one, and those that the boxes suggest."""
    shifts = [by for by in (1, -1) if min(own) + by >= 0]
    candidates: list[CategoryIds] = [{label + by: own[label] for label in own} for by in shifts]
    candidates.append(suggested := _overlapping(own, votes))
    before = _per_class(own, split, chosen, detections)
    best: CategoryIds = own
    best_map = 0.0
    highest = own_map = float(np.mean(list(before.values())))
    for other in candidates:
        after = _per_class(other, split, chosen, detections)
        changed = [name for number, name in _changed(own, other, split) if name in after]
        if not changed:
            continue
        old, new = (float(np.mean([each[name] for name in changed])) for each in (before, after))
        mean = float(np.mean(list(after.values())))
        highest = max(highest, mean)
        if new >= LEAST_FACTOR * old + LEAST_GAIN and mean > best_map:
            best, best_map = other, mean
    return _Compared(own, best, own_map, best_map, highest, best is suggested)


def _poor(compared: _Compared, split: Split, images: int) -> str:
    """Says that a detector is poor with every mapping, which tells nothing about labels."""
    height, width = split.most_common_size
    names = {number: split.categories[label] for label, number in compared.own.items()}
    mapping = {label: names[number] for label, number in compared.best.items()}
    others = ""
    if compared.best is not compared.own:
        others = f", {100 * compared.best_map:.1f} with the labels {describe(mapping)}"
    return (
        f"the detector is poor with every mapping of labels on {images} images of {split.name} "
        f"(mAP {100 * compared.own_map:.1f}{others}, at {height}x{width} pixels): "
        "its input size, weights or data may be others than it was trained on; if so, press Ctrl-C and give "
        "--model-arguments, --weights or --data of its training"
    )


def _choose(split: Split, images: int | None) -> list[int]:
    """Indices of a few images with boxes, evenly from the first ``images``."""
    indices = range(len(split) if images is None else min(images, len(split)))
    index = split.coco.imgToAnns
    full = [i for i in indices if any(not each["iscrowd"] for each in index.get(split.image_ids[i], ()))]
    if len(full) <= IMAGES:
        return full
    return [full[place * len(full) // IMAGES] for place in range(IMAGES)]


def _changed(own: CategoryIds, other: CategoryIds, split: Split) -> list[tuple[int, str]]:
    """Id and name of the categories with another label, or none."""
    return [(number, split.categories[label]) for label, number in own.items() if other.get(label) != number]


def _per_class(
    category_ids: CategoryIds, split: Split, chosen: Sequence[int], detections: Detections
) -> dict[str, float]:
    """Average precision of each class with boxes, where detections have labels for category ids."""
    mapped = detections[np.isin(detections[:, CATEGORY], list(category_ids))]
    mapped[:, CATEGORY] = [category_ids[label] for label in mapped[:, CATEGORY].astype(int).tolist()]
    return score_detections(split, chosen, mapped).per_class


def _overlapping(own: CategoryIds, votes: Votes) -> CategoryIds:
    """The labels that find most boxes; a category keeps its own where no box says another and it is free.

    All labels are ``own`` where no category has enough boxes under another.
    """
    labels, numbers = sorted({*own, *(label for label, _ in votes)}), list(own.values())
    # less than one box in all, so that these decide only where no boxes do
    bonus = 0.25 / len(own)
    gain = [
        [votes[label, number] + bonus * ((label in own) + (own.get(label) == number)) for number in numbers]
        for label in labels
    ]
    rows, columns = linear_sum_assignment(np.array(gain), maximize=True)
    mapping = {labels[row]: numbers[column] for row, column in zip(rows, columns, strict=True)}
    moved = [votes[pair] for pair in mapping.items() if own.get(pair[0]) != pair[1]]
    return mapping if max(moved, default=0) >= LEAST_BOXES else own


def _votes(split: Split, chosen: Sequence[int], detections: Detections) -> Votes:
    """How many boxes of each category each label finds: that of the best score of those that overlap."""
    votes: Votes = Counter()
    for index in chosen:
        number = split.image_ids[index]
        things = [each for each in split.coco.imgToAnns.get(number, ()) if not each["iscrowd"]]
        detected = detections[detections[:, IMAGE] == number]
        if not len(detected):
            continue
        detected = detected[np.argsort(-detected[:, SCORE], kind="stable")]
        overlaps = _iou(np.array([each["bbox"] for each in things]), detected[:, BOX])
        for thing, row in zip(things, overlaps, strict=True):
            if (row >= IOU).any():  # the detection with the best score of those that overlap
                votes[int(detected[np.argmax(row >= IOU), CATEGORY]), thing["category_id"]] += 1
    return votes


def _iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes [n, 4] and [m, 4] (x, y, width, height). Shape [n, m]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum((first[:, :2] + first[:, 2:])[:, None], (second[:, :2] + second[:, 2:])[None])
    shared = (high - low).clip(0).prod(axis=2)
    area = first[:, 2:].prod(axis=1)[:, None] + second[:, 2:].prod(axis=1)[None]
    return np.asarray(shared / (area - shared).clip(1e-9))
