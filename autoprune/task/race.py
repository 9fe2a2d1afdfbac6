"""The evaluation of a detector that races a rival: part by part, until it is beaten or has seen all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from autoprune.data.coco import Split
from autoprune.data.evaluate import Metrics, score_detections
from autoprune.data.evaluators import NONE, Detections
from autoprune.data.racing import RaceOrder, is_beaten, prefix_maps
from autoprune.data.rivals import Maps, Rival, decode_maps, encode_maps, rounded


@dataclass(frozen=True)
class Raced:
    """What an evaluation came to.

    Attributes:
        map: mAP on all images; where the race was lost, the rival's plus the difference on those seen.
        images: number of images that were seen.
        scores: all numbers, where all images were seen.
        maps: `prefix_maps` of all looks as text, where all images were seen.
    """

    map: float
    images: int
    scores: Metrics | None = None
    maps: str | None = None


def race(
    detections_in: Callable[[Sequence[int]], Detections], split: Split, order: RaceOrder, rival: Rival | None
) -> Raced:
    """Measures what detects on images of a split; see `evaluate`.

    Args:
        detections_in: gives the detections in the images of these indices.
        split: images and boxes.
        order: the images, and when the detector is compared.
        rival: the detector to beat, if there is one.

    Raises:
        DataError: as of `score_detections`.
    """
    parts: list[Detections] = []
    starts = (0, *order.looks[:-1])
    kept = None if rival is None else decode_maps(rival.maps)
    if kept is not None and len(kept) != len(order.looks):
        rival = None  # of an earlier version, which looked elsewhere
    rows = []
    for look, (start, end) in enumerate(zip(starts, order.looks, strict=True)):
        parts.append(detections_in(order.images[start:end]))
        row = _look_at(split, np.concatenate([NONE, *parts]), order, look)
        rows.append(rounded(row))  # as the rival's, or two that are the same would differ
        if rival is not None and kept is not None and is_beaten(rows[-1], kept[look], look, order.looks):
            estimate = rival.map + float(rows[-1][0] - kept[look][0])
            return Raced(min(max(estimate, 0.0), rival.map), end)
    scores = score_detections(split, order.images, np.concatenate([NONE, *parts]))
    return Raced(scores.map, order.looks[-1], scores, encode_maps(np.stack(rows)))


def _look_at(split: Split, detections: Detections, order: RaceOrder, look: int) -> Maps:
    """The `prefix_maps` of detections that hold those of the images up to a look."""
    ids = [split.image_ids[index] for index in order.images[: order.looks[look]]]
    places: Sequence[int] = np.searchsorted(np.sort(ids), ids).tolist()
    return prefix_maps(split.truth.matches(detections, ids), places, look)
