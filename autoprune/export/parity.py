"""Whether an exported file finds what the detector finds: boxes, scores and mAP on real images."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.data.coco import Split
from autoprune.data.evaluate import detection_rows, score_detections
from autoprune.data.images import ResizeRule, decode, header_size, picture_files, resized_size
from autoprune.errors import ExportError
from autoprune.progress import track
from autoprune.runtimes.decode_raw_heads import Frame
from autoprune.runtimes.raw_heads import fit, on_placed
from autoprune.runtimes.sessions import Session

Found = dict[str, Tensor]
Finder = Callable[[Tensor], Found]
"""From an image, float32 [3, h, w] in [0, 1], to ``boxes`` [n, 4] in its pixels, ``scores``, ``labels``."""

BOX_PIXELS = 0.5
SCORE = 0.01
ALIKE = 0.99
"""Fraction of the detections that must agree; one at the threshold, or two of a score, may go either way."""
MAP_POINTS = 0.1


@dataclass(frozen=True)
class Parity:
    """How an exported file compares with the detector it was made from.

    Attributes:
        images: images that both looked at.
        detections: detections of the detector.
        alike: of them, those that the file has too: same label, box within half a pixel, score within 0.01.
        extra: detections that the file alone has.
        box_pixels: largest difference of a coordinate among those alike.
        score: largest difference of a score among those alike.
        map_detector: mAP of the detector, a fraction; ``None`` where there are no true boxes.
        map_file: mAP of the file.
    """

    images: int
    detections: int
    alike: int
    extra: int
    box_pixels: float
    score: float
    map_detector: float | None = None
    map_file: float | None = None

    def check(self, what: str) -> None:
        """Refuses a file that finds something else.

        Args:
            what: the file, for the message.

        Raises:
            ExportError: boxes, scores or mAP differ, or nothing was found that could differ.
        """
        if not self.detections + self.extra:
            raise ExportError(
                f"{what}: the detector finds nothing in {self.images} images, so nothing can be compared; "
                "give images that hold something, or a recovered detector"
            )
        if self.alike < ALIKE * (self.detections + self.extra):
            raise ExportError(
                f"{what} does not find what the detector finds: {self.alike} of {self.detections} "
                f"detections in {self.images} images agree, {self.extra} are its own; the file was not kept"
            )
        if self.map_detector is not None and self.map_file is not None:
            difference = 100 * abs(self.map_detector - self.map_file)
            if difference > MAP_POINTS:
                raise ExportError(
                    f"{what} has mAP {100 * self.map_file:.2f}, the detector {100 * self.map_detector:.2f}: "
                    f"more than {MAP_POINTS} points apart; the file was not kept"
                )

    def __str__(self) -> str:
        """One line for people."""
        text = (
            f"{self.alike} of {self.detections} detections in {self.images} images agree, to "
            f"{self.box_pixels:.1g} pixels and {self.score:.1g} of the score"
        )
        if self.map_detector is not None and self.map_file is not None:
            text += f"; mAP {100 * self.map_file:.2f}, the detector's {100 * self.map_detector:.2f}"
        return text


def compare(detector: Finder, file: Finder, images: "Split | Pictures", count: int) -> Parity:
    """Lets both look at the same images.

    Args:
        detector: finds what is right.
        file: finds what is to be checked.
        images: a split with true boxes, or images alone.
        count: how many images of it to take, at most.
    """
    count = min(count, len(images))
    pairs = []
    for index in track(range(count), "parity"):
        image = images.batch([index])[0][0] if isinstance(images, Split) else images[index]
        pairs.append((detector(image), file(image)))
    matches = [_match(expected, found) for expected, found in pairs]
    boxes = np.concatenate([match[0] for match in matches])
    maps: tuple[float | None, float | None] = (None, None)
    if isinstance(images, Split):
        split, chosen = images, range(count)
        rows = [
            [
                row
                for index, pair in zip(chosen, pairs, strict=True)
                for row in detection_rows(split, index, pair[of])
            ]
            for of in (0, 1)
        ]
        maps = score_detections(split, chosen, rows[0]).map, score_detections(split, chosen, rows[1]).map
    return Parity(
        images=count,
        detections=sum(len(expected["scores"]) for expected, _ in pairs),
        alike=len(boxes),
        extra=sum(len(found["scores"]) for _, found in pairs) - len(boxes),
        box_pixels=float(boxes.max(initial=0)),
        score=float(np.concatenate([match[1] for match in matches]).max(initial=0)),
        map_detector=maps[0],
        map_file=maps[1],
    )


def whole(detector: nn.Module) -> Finder:
    """A detector as it is."""

    def find(image: Tensor) -> Found:
        with torch.inference_mode():
            (found,) = detector([image])
        return {name: found[name] for name in ("boxes", "scores", "labels")}

    return find


def whole_file(session: Session, names: Sequence[str]) -> Finder:
    """An ONNX file of a whole detector, with the names of its outputs."""

    def find(image: Tensor) -> Found:
        found = dict(zip(names, session(image.numpy()), strict=True))
        return {name: torch.from_numpy(found[name]) for name in ("boxes", "scores", "labels")}

    return find


def placed(detector: nn.Module, frame: Frame) -> Finder:
    """A detector on images in the frame of its raw heads, read by torchvision's own code."""

    def find(image: Tensor) -> Found:
        inside, size = fit(image, frame)
        return _back(on_placed(detector, torch.from_numpy(inside), size), size, image)

    return find


def raw_heads_file(session: Session, frame: Frame) -> Finder:
    """A raw-heads file, read by `Frame.detections`."""

    def find(image: Tensor) -> Found:
        inside, size = fit(image, frame)
        boxes, scores = session(inside)
        found = frame.detections(boxes[0], scores[0], size)
        names = ("boxes", "scores", "labels")
        return _back({k: torch.from_numpy(v) for k, v in zip(names, found, strict=True)}, size, image)

    return find


class Pictures:
    """Images of a folder without true boxes, at the size that a detector works at.

    Args:
        folder: holds image files.
        rule: the detector's resizing.

    Raises:
        DataError: the folder holds no images.
    """

    def __init__(self, folder: Path, rule: ResizeRule | None) -> None:
        """Lists the files."""
        self._files, self._rule = picture_files(folder), rule

    def __len__(self) -> int:
        """Number of images."""
        return len(self._files)

    def __getitem__(self, index: int) -> Tensor:
        """One image, float32 [3, height, width] in [0, 1]."""
        file = self._files[index]
        return decode(file, resized_size(header_size(file), self._rule)).float() / 255

    def __iter__(self) -> Iterator[Tensor]:
        """All images in turn."""
        return (self[index] for index in range(len(self)))


def _match(expected: Found, found: Found) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Largest box and score difference of each detection that both have; none counts twice."""
    ours: dict[str, Any] = {name: value.double().numpy() for name, value in expected.items()}
    theirs: dict[str, Any] = {name: value.double().numpy() for name, value in found.items()}
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


def _back(found: Found, size: tuple[int, int], image: Tensor) -> Found:
    """Boxes in pixels of the image itself."""
    scale = torch.tensor([image.shape[-1] / size[1], image.shape[-2] / size[0]] * 2)
    return {**found, "boxes": found["boxes"] * scale}
