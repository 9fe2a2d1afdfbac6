"""Decodes raw heads to boxes with numpy alone: an image to the model's input, dense outputs to detections.

It imports only numpy and the standard library, so it can be copied to where the model runs. The model takes
``image``, float32 [N, 3, height, width], RGB in [0, 1], and returns ``boxes`` [N, A, 4] (x1, y1, x2, y2 in
pixels of its input) and ``scores`` [N, A, K] (one per label). An ONNX file holds its `Frame` as JSON in its
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
        boxes: [n, 4], x1, y1, x2, y2 in pixels of the input.
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
        padding: color of the padding, RGB in [0, 1]; 0 after the model's own normalization.
        levels: number of anchors of each level, A in all.
        per_class: whether ``most_candidates`` applies to each label, or to each level over all labels.
        first_label: the smallest label of an object; 1 where label 0 is the background.
        score_threshold: detections score above it.
        most_candidates: candidates that enter the non-maximum suppression, at most.
        iou_threshold: of two detections of one label that overlap more, the one with the lower score is
            removed.
        most_detections: detections of an image, at most.
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
        """Height and width to resize an image to, so that it fits; without ``stretch``, none is enlarged."""
        if self.stretch:
            return self.height, self.width
        scale = min(self.height / height, self.width / width, 1.0)
        return max(int(height * scale), 1), max(int(width * scale), 1)

    def pad(self, image: Array) -> Array:
        """Pads an image on the right and at the bottom.

        Args:
            image: [3, h, w], of the size that `fitted_size` returns.

        Returns:
            [1, 3, height, width].
        """
        padded = np.empty((1, 3, self.height, self.width), np.float32)
        padded[:] = np.asarray(self.padding, np.float32)[:, None, None]
        padded[0, :, : image.shape[1], : image.shape[2]] = image
        return padded

    def detections(self, boxes: Array, scores: Array, size: tuple[int, int]) -> Detections:
        """The detections of one image: the best candidates, after non-maximum suppression.

        Args:
            boxes: [A, 4].
            scores: [A, K].
            size: height and width of the image in the input, without the padding.
        """
        anchors, labels = self._candidates(scores)
        values, corners = scores[anchors, labels], boxes[anchors]
        corners = np.clip(corners, 0, np.array([size[1], size[0]] * 2, np.float32))
        kept = suppress(corners, values, labels, self.iou_threshold)[: self.most_detections]
        return Detections(corners[kept], values[kept], labels[kept])

    def _candidates(self, scores: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Anchors [c] and labels [c] of the candidates."""
        candidates: list[NDArray[np.int64]] = []  # flat indices into [A, K]
        flat = np.arange(scores.size).reshape(scores.shape)
        if self.per_class:
            parts = [flat[:, label] for label in range(self.first_label, scores.shape[1])]
        else:
            edges = np.cumsum(self.levels)[:-1]
            parts = [part[:, self.first_label :].ravel() for part in np.split(flat, edges)]
        values = scores.ravel()
        for part in parts:
            good = part[values[part] > self.score_threshold]
            best = np.argsort(-values[good], kind="stable")[: self.most_candidates]
            candidates.append(good[best])
        chosen = np.concatenate(candidates)
        return chosen // scores.shape[1], chosen % scores.shape[1]


def suppress(
    boxes: Array, scores: Array, labels: NDArray[np.int64], iou_threshold: float
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression within each label.

    Args:
        boxes: [n, 4].
        scores: [n].
        labels: [n].
        iou_threshold: a box is removed where one of its label with a higher score overlaps it by more.

    Returns:
        Indices of the kept boxes, highest score first.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, labels = boxes[order], labels[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.zeros(len(order), bool)
    for label in np.unique(labels):
        rest = np.flatnonzero(labels == label)
        while len(rest):
            first, rest = rest[0], rest[1:]
            kept[first] = True
            low = np.maximum(boxes[first, :2], boxes[rest, :2])
            high = np.minimum(boxes[first, 2:], boxes[rest, 2:])
            overlap = np.prod(np.clip(high - low, 0, None), axis=1)
            # as a product: boxes without an area overlap nothing, and there is no division by 0
            rest = rest[overlap <= iou_threshold * (areas[first] + areas[rest] - overlap)]
    return order[kept]
