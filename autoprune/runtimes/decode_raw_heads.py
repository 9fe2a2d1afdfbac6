"""Decodes raw heads to boxes with numpy alone: an image to the model's input, dense outputs to detections.

It imports only numpy and the standard library, so it can be copied to where the model runs. The model takes
``image``, float32 [1, 3, height, width], RGB in [0, 1], and returns ``boxes`` [1, A, 4] (x1, y1, x2, y2 in
pixels of its input) and ``scores`` [1, A, K] (one per label). An ONNX file holds its `Frame` as JSON in its
metadata, under the key ``autoprune.frame``.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


class Detections(NamedTuple):
    """The detections of one image, highest score first.

    Attributes:
        boxes: [n, 4], x1, y1, x2, y2 in pixels of the image as it was resized, without the padding.
        scores: [n].
        labels: [n].
    """

    boxes: Array
    scores: Array
    labels: NDArray[np.int64]


@dataclass(frozen=True)
class Frame:
    """The fixed input of a raw-heads model, and how its outputs are to be read.

    Attributes:
        height: rows of the input.
        width: columns of the input.
        stretch: whether images are stretched to the input; else they keep their aspect ratio and are padded.
        padding: color of the padding, RGB in [0, 1].
        levels: number of anchors of each level, A in all.
        per_class: whether ``most_candidates`` applies to each label, or to each level over all labels.
        first_label: the first column of ``scores`` of objects; 1 where column 0 is the background.
        score_threshold: detections score above it.
        most_candidates: candidates that enter the non-maximum suppression, at most.
        iou_threshold: of two detections of one label that overlap more, the one with the lower score is
            removed.
        most_detections: detections of an image, at most.
        label_of_first: the label of column 0 of ``scores``; the others follow.
        best_class: whether an anchor is a candidate for its best label alone.
        enlarged_to: pixels of the longer side that smaller images are enlarged to; 0 where none is.
        smoothed: whether images that become smaller are smoothed, as by PIL's ``resize``, or not, as by
            ``cv2.resize``; with the other one, boxes are some tenths of a pixel off.
        centered: whether images lie in the middle of the input, or in its upper left corner.
        clip_last: whether boxes are cut to the image after non-maximum suppression, or before.
        drop_empty: whether boxes that have no area in the image are dropped.

    Fields with a default are absent from files of earlier versions.
    """

    height: int
    width: int
    stretch: bool
    padding: tuple[float, float, float]
    levels: tuple[int, ...]
    per_class: bool
    first_label: int
    score_threshold: float
    most_candidates: int
    iou_threshold: float
    most_detections: int
    label_of_first: int = 0
    best_class: bool = False
    enlarged_to: int = 0
    smoothed: bool = True
    centered: bool = False
    clip_last: bool = False
    drop_empty: bool = False

    def to_json(self) -> str:
        """One line of JSON."""
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> "Frame":
        """Reads what `to_json` wrote."""
        content: dict[str, Any] = json.loads(text)
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in content.items()}
        return Frame(**fields)

    def fitted_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width to resize an image to, so that it fits."""
        if self.stretch:
            return self.height, self.width
        most = self.enlarged_to / max(height, width) if self.enlarged_to else 1.0
        scale = min(self.height / height, self.width / width, most)
        whole = round if self.enlarged_to else int
        return max(whole(height * scale), 1), max(whole(width * scale), 1)

    def offset(self, size: tuple[int, int]) -> tuple[int, int]:
        """Pixels above and left of an image of a height and width in the input."""
        if not self.centered:
            return 0, 0
        # of an odd number of pixels, the smaller half
        return (self.height - size[0]) // 2, (self.width - size[1]) // 2

    def pad(self, image: Array) -> Array:
        """Pads an image to the input.

        Args:
            image: [3, h, w], of the size that `fitted_size` returns.

        Returns:
            [1, 3, height, width].
        """
        padded = np.empty((1, 3, self.height, self.width), np.float32)
        padded[:] = np.asarray(self.padding, np.float32)[:, None, None]
        _, height, width = image.shape
        top, left = self.offset((height, width))
        padded[0, :, top : top + height, left : left + width] = image
        return padded

    def detections(self, boxes: Array, scores: Array, size: tuple[int, int]) -> Detections:
        """The detections of one image: the best candidates, after non-maximum suppression.

        Args:
            boxes: [A, 4].
            scores: [A, K].
            size: height and width of the image in the input, without the padding.
        """
        top, left = self.offset(size)
        boxes = boxes - np.array([left, top] * 2, np.float32)
        limits = np.array([size[1], size[0]] * 2, np.float32)
        within = np.clip(boxes, 0, limits)
        anchors, columns = self._candidates(scores)
        if self.drop_empty:
            whole = (within[anchors, 2:] > within[anchors, :2]).all(1)
            anchors, columns = anchors[whole], columns[whole]
        corners = (boxes if self.clip_last else within)[anchors]
        kept = suppress(corners, scores[anchors, columns], columns, self.iou_threshold, self.most_detections)
        anchors, columns = anchors[kept], columns[kept]
        return Detections(within[anchors], scores[anchors, columns], columns + self.label_of_first)

    def _candidates(self, scores: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Anchors [c] and columns [c] of the candidates."""
        candidates: list[NDArray[np.int64]] = []  # flat indices into [A, K]
        flat = np.arange(scores.size).reshape(scores.shape)[:, self.first_label :]
        if self.best_class:
            best_column = scores[:, self.first_label :].argmax(1)
            flat = np.take_along_axis(flat, best_column[:, None], 1)
        if self.per_class:
            parts = list(flat.T)
        else:
            edges = np.cumsum(self.levels)[:-1]
            parts = [part.ravel() for part in np.split(flat, edges)]
        values = scores.ravel()
        for part in parts:
            good = part[values[part] > self.score_threshold]
            best = np.argsort(-values[good], kind="stable")[: self.most_candidates]
            candidates.append(good[best])
        chosen = np.concatenate(candidates)
        return chosen // scores.shape[1], chosen % scores.shape[1]


def suppress(
    boxes: Array,
    scores: Array,
    labels: NDArray[np.int64],
    iou_threshold: float,
    most: int | None = None,
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression within each label.

    Args:
        boxes: [n, 4].
        scores: [n].
        labels: [n].
        iou_threshold: a box is removed where one of its label with a higher score overlaps it by more; of 1
            or above, none is.
        most: boxes to keep, at most.

    Returns:
        Indices of the kept boxes, highest score first.
    """
    order = np.argsort(-scores, kind="stable")
    if iou_threshold >= 1:
        return order[:most]
    boxes, labels = boxes[order], labels[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept: list[int] = []
    rest = np.arange(len(order))
    while len(rest) and (most is None or len(kept) < most):
        first, rest = rest[0], rest[1:]
        kept.append(first)
        low = np.maximum(boxes[first, :2], boxes[rest, :2])
        high = np.minimum(boxes[first, 2:], boxes[rest, 2:])
        overlap = np.prod(np.clip(high - low, 0, None), axis=1)
        union = areas[first] + areas[rest] - overlap
        # as a product: no division by 0; boxes without an area, or turned inside out, overlap nothing
        apart = (overlap <= iou_threshold * union) | (union <= 0)
        rest = rest[apart | (labels[rest] != labels[first])]
    return order[kept]
