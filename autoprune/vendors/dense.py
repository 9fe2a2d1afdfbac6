"""How detections are read off the dense outputs of a vendor's detector."""

from dataclasses import dataclass


@dataclass(frozen=True)
class DenseRule:
    """How a vendor selects detections from boxes [n, A, 4] and scores [n, A, K]; column 0 is label 1.

    Attributes:
        score_threshold: detections score above it.
        most_candidates: pairs of a box and a class, the best of each level, that are looked at; ``None`` for
            as many as there are boxes.
        most_detections: detections of an image, at most; ``None`` for as many as there are boxes.
        iou_threshold: the lower of two detections of a class that overlap more goes; 1 where none goes.
        best_class: whether a box is a candidate for its best class alone.
        clip_last: whether boxes are cut to the image after overlapping ones went, not before.
        drop_empty: whether boxes without an area in the image go first.
        levels: boxes of each level; empty where all are one.
    """

    score_threshold: float
    most_candidates: int | None = None
    most_detections: int | None = None
    iou_threshold: float = 1.0
    best_class: bool = False
    clip_last: bool = False
    drop_empty: bool = False
    levels: tuple[int, ...] = ()
