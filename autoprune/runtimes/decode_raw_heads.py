"""What turns an image into the input of a raw-heads model, and its dense outputs into detections.

Nothing but numpy and the standard library: this file can be copied to where the model is run. The model
takes ``image``, float32 [N, 3, height, width], RGB in [0, 1], and gives ``boxes`` [N, A, 4] (x1, y1, x2, y2
in pixels of its input) and ``scores`` [N, A, K] (one a label). An ONNX file carries its `Frame` as JSON, in
its metadata under the key ``autoprune.frame``.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Frame:
    """The fixed input of a raw-heads model, and how its outputs are to be read.

    Attributes:
        height: rows of the input.
        width: columns of the input.
        stretch: whether images are stretched to the input; else they keep their ratio and are padded.
        padding: colour of the padding, RGB in [0, 1]; it is 0 after the model's own normalisation.
        levels: anchors of each level, which add up to A.
        per_class: whether ``most_candidates`` holds for each label, or for each level over all labels.
        first_label: the smallest label that counts; 1 where 0 is a background with a score of its own.
        score_threshold: detections must be above it.
        most_candidates: best ones that go into the non-maximum suppression.
        iou_threshold: of two detections of one label that overlap more, the lower one goes.
        most_detections: best ones that are kept of an image.
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
        """Height and width to resize an image to, so that it fits; one that fits already is left as it is."""
        if self.stretch:
            return self.height, self.width
        scale = min(self.height / height, self.width / width, 1.0)
        return max(int(height * scale), 1), max(int(width * scale), 1)

    def place(self, image: Array) -> Array:
        """Pads an image on the right and at the bottom.

        Args:
            image: [3, h, w] of the size that `fitted_size` says.

        Returns:
            [1, 3, height, width].
        """
        placed = np.empty((1, 3, self.height, self.width), np.float32)
        placed[:] = np.asarray(self.padding, np.float32)[:, None, None]
        placed[0, :, : image.shape[1], : image.shape[2]] = image
        return placed

    def detections(
        self, boxes: Array, scores: Array, size: tuple[int, int]
    ) -> tuple[Array, Array, NDArray[np.int64]]:
        """Reads the detections of one image: the best candidates, without those that overlap a better one.

        Args:
            boxes: [A, 4].
            scores: [A, K].
            size: height and width that the image had in the input, without the padding.

        Returns:
            Boxes [n, 4] in pixels of the input, scores [n], labels [n]; the best first.
        """
        anchors, labels = self._candidates(scores)
        values, corners = scores[anchors, labels], boxes[anchors]
        corners = np.clip(corners, 0, np.array([size[1], size[0]] * 2, np.float32))
        kept = suppress(corners, values, labels, self.iou_threshold)[: self.most_detections]
        return corners[kept], values[kept], labels[kept]

    def _candidates(self, scores: Array) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Anchor and label of each candidate."""
        found: list[NDArray[np.int64]] = []  # flat indices into [A, K]
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
            found.append(good[best])
        chosen = np.concatenate(found)
        return chosen // scores.shape[1], chosen % scores.shape[1]


def suppress(
    boxes: Array, scores: Array, labels: NDArray[np.int64], iou_threshold: float
) -> NDArray[np.int64]:
    """Greedy non-maximum suppression within each label.

    Args:
        boxes: [n, 4].
        scores: [n].
        labels: [n].
        iou_threshold: a box goes where a better one of its label overlaps it by more.

    Returns:
        Indices of those kept, the best first.
    """
    order = np.argsort(-scores, kind="stable")
    boxes, labels = boxes[order], labels[order]
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = np.zeros(len(order), bool)
    for label in np.unique(labels):
        left = np.flatnonzero(labels == label)
        while len(left):
            first, left = left[0], left[1:]
            kept[first] = True
            low = np.maximum(boxes[first, :2], boxes[left, :2])
            high = np.minimum(boxes[first, 2:], boxes[left, 2:])
            shared = np.prod(np.clip(high - low, 0, None), axis=1)
            # as a product, so that boxes without an area overlap nothing and nothing is divided by 0
            left = left[shared <= iou_threshold * (areas[first] + areas[left] - shared)]
    return order[kept]
