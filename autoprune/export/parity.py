"""Whether an exported file has the detections of its detector: boxes, scores and mAP on real images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.data.coco import Split
from autoprune.data.detections import detections_of
from autoprune.data.evaluate import score_detections
from autoprune.data.samples import true_boxes
from autoprune.errors import ExportError
from autoprune.images.decode import (
    View,
    decode,
    header_size,
    image_files,
    read_header,
    resized_size,
)
from autoprune.images.pixels import measure_levels
from autoprune.progress import track
from autoprune.resize import Resizing
from autoprune.runtimes.decode_raw_heads import Frame
from autoprune.runtimes.raw_heads import detect_padded, resize_and_pad
from autoprune.runtimes.sessions import Session

Detections = dict[str, Tensor]
Detect = Callable[[Tensor], Detections]
"""From an image, float32 [3, h, w] in [0, 1], to ``boxes`` [n, 4] in its pixels, ``scores``, ``labels``."""

BOX_PIXELS = 0.5
SCORE = 0.01
MATCHED = 0.99
"""Fraction of the detections that must match; one at the threshold, or two of equal score, may differ."""
MAP_POINTS = 0.1


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the detector it was made from.

    Attributes:
        images: images that were compared.
        detections: detections of the detector.
        matched: of them, those that the file has too: same label, box within half a pixel, score within 0.01.
        extra: detections that only the file has.
        box_pixels: largest difference of a coordinate among the matched ones.
        score: largest difference of a score among the matched ones.
        map_detector: mAP of the detector, a fraction; ``None`` without ground truth.
        map_file: mAP of the file.
    """

    images: int
    detections: int
    matched: int
    extra: int
    box_pixels: float
    score: float
    map_detector: float | None = None
    map_file: float | None = None

    def check(self, file: str) -> None:
        """Refuses a file with other detections.

        Args:
            file: its name, for the message.

        Raises:
            ExportError: boxes, scores or mAP differ, or there are no detections to compare.
        """
        if not self.detections + self.extra:
            raise ExportError(
                f"{file}: the detector finds nothing in {self.images} images, so nothing can be compared; "
                "give images with objects, or a recovered detector"
            )
        if self.matched < MATCHED * (self.detections + self.extra):
            raise ExportError(
                f"{file} does not have the detector's detections: {self.matched} of {self.detections} "
                f"match in {self.images} images, and it has {self.extra} others{self._maps()}; the file was "
                "not kept. Of nearly equal scores, as before training, round-off decides which are kept: "
                "export a detector that is trained, or with a higher threshold of the score"
            )
        if self.map_detector is not None and self.map_file is not None:
            difference = 100 * abs(self.map_detector - self.map_file)
            if difference > MAP_POINTS:
                raise ExportError(
                    f"{file} has mAP {100 * self.map_file:.2f}, the detector {100 * self.map_detector:.2f}: "
                    f"more than {MAP_POINTS} points apart; the file was not kept"
                )

    def __str__(self) -> str:
        """One line."""
        text = (
            f"{self.matched} of {self.detections} detections in {self.images} images match, within "
            f"{self.box_pixels:.1g} pixels and {self.score:.1g} of the score"
        )
        return text + self._maps()

    def _maps(self) -> str:
        if self.map_detector is None or self.map_file is None:
            return ""
        return f"; mAP {100 * self.map_file:.2f}, the detector's {100 * self.map_detector:.2f}"


def compare(
    detector: Detect,
    file: Detect,
    images: "Split | Pictures",
    count: int,
    size: tuple[int, int] | None = None,
) -> Parity:
    """Compares the detections of both on the same images.

    Args:
        detector: the reference.
        file: what is checked.
        images: a split with ground truth, or images alone.
        count: images to compare on, at most.
        size: height and width of the images to compare on, where the file takes no others.
    """
    fitting = [index for index, own in enumerate(images.sizes) if size in (None, own)]
    chosen = fitting[:count]
    pairs = []
    for index in track(chosen, "parity"):
        image = image_of(images, index)
        pairs.append((detector(image), file(image)))
    matches = [_match(expected, actual) for expected, actual in pairs]
    boxes = np.concatenate([match[0] for match in matches])
    maps: tuple[float | None, float | None] = (None, None)
    if isinstance(images, Split) and any(true_boxes(images, index) for index in chosen):
        split = images
        of_detector, of_file = (
            np.concatenate(
                [detections_of(split, index, pair[side]) for index, pair in zip(chosen, pairs, strict=True)]
            )
            for side in (0, 1)
        )
        maps = score_detections(split, chosen, of_detector).map, score_detections(split, chosen, of_file).map
    return Parity(
        images=len(chosen),
        detections=sum(len(expected["scores"]) for expected, _ in pairs),
        matched=len(boxes),
        extra=sum(len(actual["scores"]) for _, actual in pairs) - len(boxes),
        box_pixels=float(boxes.max(initial=0)),
        score=float(np.concatenate([match[1] for match in matches]).max(initial=0)),
        map_detector=maps[0],
        map_file=maps[1],
    )


def image_of(images: "Split | Pictures", index: int) -> Tensor:
    """One image as the detector sees it, float32 [3, height, width] in [0, 1]."""
    return images.batch([index])[0][0] if isinstance(images, Split) else images[index]


def whole(detector: nn.Module) -> Detect:
    """A detector itself."""

    def detect(image: Tensor) -> Detections:
        with torch.inference_mode():
            (detections,) = detector([image])
        return {name: detections[name] for name in ("boxes", "scores", "labels")}

    return detect


def whole_file(session: Session, names: Sequence[str]) -> Detect:
    """An ONNX file of a whole detector, with the names of its outputs."""

    def detect(image: Tensor) -> Detections:
        outputs = dict(zip(names, session(image.numpy()), strict=True))
        return {name: torch.from_numpy(outputs[name]) for name in ("boxes", "scores", "labels")}

    return detect


def padded(detector: nn.Module, frame: Frame) -> Detect:
    """A detector on images as its raw heads see them, decoded by its own code."""

    def detect(image: Tensor) -> Detections:
        pixels, size = resize_and_pad(image, frame)
        return _to_image(detect_padded(detector, torch.from_numpy(pixels), size), size, image)

    return detect


def raw_heads_file(session: Session, frame: Frame) -> Detect:
    """A raw-heads file, decoded by `Frame.detections`."""

    def detect(image: Tensor) -> Detections:
        pixels, size = resize_and_pad(image, frame)
        boxes, scores = session(pixels)
        arrays = frame.detections(boxes[0], scores[0], size)._asdict()
        detections = {name: torch.from_numpy(array) for name, array in arrays.items()}
        return _to_image(detections, size, image)

    return detect


class Pictures:
    """Images of a folder without ground truth, at the size that a detector works at.

    Args:
        folder: holds image files.
        resize: the detector's, see `resize.pixel_resizing`.

    Attributes:
        sizes: height and width of each, as the detector sees it.

    Raises:
        DataError: the folder holds no images, or one that can't be read.
    """

    def __init__(self, folder: Path, resize: Resizing) -> None:
        self._files, self._resize = image_files(folder), resize
        self.sizes = [resized_size(header_size(file), resize) for file in self._files]
        deep = [file for file in self._files if read_header(file).deep]
        self._view = View(levels=measure_levels(deep) if deep else None)

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        """One image, float32 [3, height, width] in [0, 1]."""
        return decode(self._files[index], self.sizes[index], self._view, self._resize).float() / 255


def _match(expected: Detections, actual: Detections) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest box and score difference [m] of each detection that both have; none is matched twice."""
    ours: dict[str, Any] = {name: value.double().numpy() for name, value in expected.items()}
    theirs: dict[str, Any] = {name: value.double().numpy() for name, value in actual.items()}
    free = np.ones(len(theirs["scores"]), bool)
    boxes, scores = [], []
    for box, score, label in zip(ours["boxes"], ours["scores"], ours["labels"], strict=True):
        apart = np.abs(theirs["boxes"] - box).max(axis=1, initial=0)
        differs = np.abs(theirs["scores"] - score)
        good = free & (theirs["labels"] == label) & (apart <= BOX_PIXELS) & (differs <= SCORE)
        if good.any():
            best = int(np.argmin(np.where(good, apart, np.inf)))
            free[best] = False
            boxes.append(apart[best])
            scores.append(differs[best])
    return np.array(boxes, np.float64), np.array(scores, np.float64)


def _to_image(detections: Detections, size: tuple[int, int], image: Tensor) -> Detections:
    """Detections with their boxes in pixels of the image itself."""
    scale = torch.tensor([image.shape[-1] / size[1], image.shape[-2] / size[0]] * 2)
    return {**detections, "boxes": detections["boxes"] * scale}
