"""Sample images for the page: pictures to embed, and which boxes are found, false or missed."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from autoprune.data.images import decode
from autoprune.data.samples import SAMPLES_FILE
from autoprune.errors import DataError
from autoprune.report.entries import read_json

LARGEST_SIDE = 560  # pixels of an embedded picture
SMALLEST_SIDE = 320  # smaller pictures are enlarged, so that their boxes can be told apart
QUALITY = 80
IOU = 0.5  # from which on a box of the right class counts as found


@dataclass(frozen=True)
class Box:
    """A box to draw.

    Attributes:
        box: x1, y1, x2, y2 as fractions of the picture's width and height.
        label: the class.
        score: of a found box its own; of a true one that of the box that finds it, 0 where none does.
        right: whether it stands for a true box, or is one.
    """

    box: tuple[float, float, float, float]
    label: str
    score: float
    right: bool


@dataclass(frozen=True)
class Sample:
    """One image and what each detector finds in it.

    Attributes:
        name: of the file.
        picture: a ``data:`` URL.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        found: for each detector the boxes that it draws.
        truth: for each detector the true boxes, with the score at which it finds them.
    """

    name: str
    picture: str
    width: int
    height: int
    found: Mapping[str, Sequence[Box]]
    truth: Mapping[str, Sequence[Box]]


def read_samples(folder: Path) -> tuple[list[Sample], str | None]:
    """The samples that a recovery left in its folder, and one line on what is missing, if anything is."""
    file = folder / SAMPLES_FILE
    if not file.is_file():
        return [], f"{folder} has no {SAMPLES_FILE}: it was recovered by an earlier version"
    samples, missing = [], []
    for content in read_json(file)["images"]:
        try:
            samples.append(_sample(content))
        except DataError:
            missing.append(content["file"])
    more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
    return samples, f"not shown, as it can't be read: {missing[0]}{more}" if missing else None


def _sample(content: Mapping[str, Any]) -> Sample:
    scale = (content["width"], content["height"])
    picture, width, height = _embedded(Path(content["file"]), (content["height"], content["width"]))
    found: dict[str, list[Box]] = {}
    truth: dict[str, list[Box]] = {}
    for name, boxes in content["found"].items():
        partners = match(boxes, content["truth"])
        scores = {partner: boxes[place]["score"] for place, partner in partners.items()}
        found[name] = [_box(box, scale, box["score"], place in partners) for place, box in enumerate(boxes)]
        truth[name] = [
            _box(box, scale, scores.get(place, 0.0), True) for place, box in enumerate(content["truth"])
        ]
    return Sample(Path(content["file"]).name, picture, width, height, found, truth)


def match(found: Sequence[Mapping[str, Any]], truth: Sequence[Mapping[str, Any]]) -> dict[int, int]:
    """Which found box stands for which true one, as COCOeval pairs them at an IoU of 0.5.

    From the highest score down, each takes the true box of its class that it overlaps most and that is free
    yet. So a higher threshold on the scores only drops pairs and makes no others.

    Args:
        found: ``box``, ``label`` and ``score``, the highest score first.
        truth: ``box`` and ``label``.
    """
    if not found or not truth:
        return {}
    overlaps = iou(np.array([box["box"] for box in found]), np.array([box["box"] for box in truth]))
    partners: dict[int, int] = {}
    for place, box in enumerate(found):
        free = [
            other
            for other, thing in enumerate(truth)
            if thing["label"] == box["label"] and other not in partners.values()
        ]
        best = max(free, key=lambda other: overlaps[place, other], default=None)
        if best is not None and overlaps[place, best] >= IOU:
            partners[place] = best
    return partners


def iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> NDArray[np.float64]:
    """Intersection over union of boxes [n, 4] and [m, 4] (x1, y1, x2, y2). Shape [n, m]."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(0).prod(axis=2)
    area = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (first, second)]
    return np.asarray(shared / (area[0][:, None] + area[1][None, :] - shared).clip(1e-9))


def _box(content: Mapping[str, Any], scale: tuple[int, int], score: float, right: bool) -> Box:
    corners = np.array(content["box"]) / (scale * 2)
    x1, y1, x2, y2 = corners.clip(0, 1).round(4).tolist()
    return Box((x1, y1, x2, y2), content["label"], score, right)


def _embedded(file: Path, size: tuple[int, int]) -> tuple[str, int, int]:
    """The picture of a stored (height, width) as a ``data:`` URL, with its width and height on the page.

    Raises:
        DataError: it can't be read.
    """
    scale = min(max(max(size), SMALLEST_SIDE), LARGEST_SIDE) / max(size)
    height, width = (max(round(side * scale), 1) for side in size)
    picture = Image.fromarray(decode(file, (height, width)).permute(1, 2, 0).numpy())
    jpeg = io.BytesIO()
    picture.save(jpeg, "JPEG", quality=QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(jpeg.getvalue()).decode(), width, height
