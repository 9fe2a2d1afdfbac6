"""Sample images for the page: pictures to embed, and which boxes are correct, false or missed."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoprune.errors import DataError
from autoprune.images.decode import UPRIGHT, View, decode, header_size
from autoprune.images.pixels import Levels
from autoprune.run.documents import SAMPLES
from autoprune.run.names import SAMPLES_FILE

LARGEST_SIDE = 560  # pixels of an embedded picture
SMALLEST_SIDE = 320  # smaller pictures are enlarged, so that their boxes are legible
QUALITY = 80
IOU = 0.5  # the least overlap of a detection with a true box of its class


@dataclass(frozen=True)
class Box:
    """A box to draw.

    Attributes:
        box: x1, y1, x2, y2 as fractions of the picture's width and height.
        label: the class.
        score: of a detection; of a true box, that of the detection it is matched with, 0 if none.
        correct: whether it is matched with a true box, or is one.
    """

    box: tuple[float, float, float, float]
    label: str
    score: float
    correct: bool


@dataclass(frozen=True)
class Sample:
    """One image with the detections of each detector.

    Attributes:
        name: of the file.
        picture: a ``data:`` URL.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        detections: the boxes of each detector.
        truth: for each detector the true boxes, with the score at which it detects them.
    """

    name: str
    picture: str
    width: int
    height: int
    detections: Mapping[str, Sequence[Box]]
    truth: Mapping[str, Sequence[Box]]


def read_samples(folder: Path) -> tuple[list[Sample], str | None]:
    """The samples that a recovery wrote to its folder, and one line on what is missing, if anything is."""
    file = folder / SAMPLES_FILE
    if not file.is_file():
        return [], f"{folder} has no {SAMPLES_FILE}: it was recovered by an earlier version"
    samples, missing = [], []
    for content in SAMPLES.read(file)["images"]:
        try:
            samples.append(_sample(content))
        except DataError:
            missing.append(content["file"])
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return samples, f"not shown, as it can't be read: {missing[0]}{more}" if missing else None


def _sample(content: Mapping[str, Any]) -> Sample:
    scale = (content["width"], content["height"])
    file, size = Path(content["file"]), (content["height"], content["width"])
    stored = content.get("stored", size != header_size(file))  # earlier versions decoded as stored
    levels = content.get("levels")
    picture = encode(file, size, View(stored, Levels(*levels) if levels else None))
    detections: dict[str, list[Box]] = {}
    truth: dict[str, list[Box]] = {}
    for name, boxes in content["found"].items():
        partners = match(boxes, content["truth"])
        scores = {partner: boxes[index]["score"] for index, partner in partners.items()}
        detections[name] = [
            _box(box, scale, box["score"], index in partners) for index, box in enumerate(boxes)
        ]
        truth[name] = [
            _box(box, scale, scores.get(index, 0.0), True) for index, box in enumerate(content["truth"])
        ]
    return Sample(file.name, picture.url, picture.width, picture.height, detections, truth)


def match(detections: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Index of the true box that each detection is matched with, as COCOeval does at an IoU of 0.5.

    From the highest score down, each detection takes the unmatched true box of its class with the largest
    overlap, of several the last one. So a higher score threshold only drops pairs and makes no others.

    Args:
        detections: ``box``, ``label`` and ``score``, the highest score first.
        truth: ``box`` and ``label``.
    """
    if not detections or not truth:
        return {}
    overlaps = iou(np.array([box["box"] for box in detections]), np.array([box["box"] for box in truth]))
    partners: dict[int, int] = {}
    for index, box in enumerate(detections):
        unmatched = [
            other
            for other, target in enumerate(truth)
            if target["label"] == box["label"] and other not in partners.values()
        ]
        best = max(unmatched, key=lambda other: (overlaps[index, other], other), default=None)
        if best is not None and overlaps[index, best] >= IOU:
            partners[index] = best
    return partners


def iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes [n, 4] and [m, 4] (x1, y1, x2, y2). Shape [n, m]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = (high - low).clip(0).prod(axis=2)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return np.asarray(intersection / (area[0][:, None] + area[1][None, :] - intersection).clip(1e-9))


def _box(content: Mapping[str, Any], scale: tuple[int, int], score: float, correct: bool) -> Box:
    corners = np.array(content["box"]) / (scale * 2)
    x1, y1, x2, y2 = corners.clip(0, 1).round(4).tolist()
    return Box((x1, y1, x2, y2), content["label"], score, correct)


class Picture(NamedTuple):
    """An image as a ``data:`` URL, with its size on the page in pixels."""

    url: str
    width: int
    height: int


def encode(file: Path, size: tuple[int, int], view: View = UPRIGHT) -> Picture:
    """The image of a (height, width) before resizing as it is embedded in the page.

    Raises:
        DataError: it can't be read.
    """
    scale = min(max(max(size), SMALLEST_SIDE), LARGEST_SIDE) / max(size)
    height, width = (max(round(side * scale), 1) for side in size)
    picture = Image.fromarray(decode(file, (height, width), view).permute(1, 2, 0).numpy())
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=QUALITY)
    url = "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode()
    return Picture(url, width, height)
