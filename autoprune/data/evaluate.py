"""mAP: COCOeval on boxes in pixels of the stored images."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import torch
from torch import nn

from autoprune.data.coco import Split
from autoprune.data.detections import detect
from autoprune.data.evaluators import Detections, check_evaluator, run_cocoeval
from autoprune.data.standard_error import bootstrap_maps, standard_error
from autoprune.errors import DataError


@dataclass(frozen=True)
class Metrics:
    """The results of COCOeval, as fractions; NaN where the data has no such boxes.

    Attributes:
        map: average precision, mean of IoU 0.50 to 0.95.
        map50: average precision at IoU 0.50.
        map75: average precision at IoU 0.75.
        map_small: of boxes below 32² stored pixels.
        map_medium: of boxes from 32² to 96² pixels.
        map_large: of boxes above 96² pixels.
        mar_1: average recall with one detection per image.
        mar_10: average recall with ten.
        mar_100: average recall with a hundred.
        mar_small: average recall of boxes below 32² pixels.
        mar_medium: of boxes from 32² to 96² pixels.
        mar_large: of boxes above 96² pixels.
        per_class: average precision of each class with boxes in the data.
        images: number of evaluated images.
        map_error: standard error of ``map`` over the choice of images, where it was requested.
        bootstrap: ``map`` on resampled images, where the error was requested; see `paired_error`.
    """

    map: float
    map50: float
    map75: float
    map_small: float
    map_medium: float
    map_large: float
    mar_1: float
    mar_10: float
    mar_100: float
    mar_small: float
    mar_medium: float
    mar_large: float
    per_class: dict[str, float]
    images: int
    map_error: float | None = None
    bootstrap: tuple[float, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """``images``, ``metrics`` (the twelve numbers that are defined) and ``per_class``, for JSON."""
        numbers = {name: value for name, value in asdict(self).items() if name in NUMBERS}
        defined = {name: value for name, value in numbers.items() if not math.isnan(value)}
        return {"images": self.images, "metrics": defined, "per_class": dict(self.per_class)}


NUMBERS = tuple(entry.name for entry in fields(Metrics))[:12]
"""The twelve numbers in COCOeval's order."""


def evaluate(
    model: nn.Module,
    split: Split,
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    images: int | None = None,
    amp: bool = False,
    error: bool = False,
) -> Metrics:
    """Measures a detector on a split, or on its first ``images`` images.

    Args:
        model: a detector with torchvision's interface, on ``device``; not modified.
        split: images and boxes, at the detector's input size.
        device: device of the images.
        batch_size: images per forward pass.
        images: number of images; ``None`` takes all.
        amp: bfloat16 autocast, on CUDA only.
        error: estimate the standard error of mAP too.

    Raises:
        DataError: the images have no boxes to score against.
        ModelError: the model does not return what torchvision's detectors do.
    """
    check_boxes(split, images)
    chosen = range(len(split) if images is None else min(images, len(split)))
    return score_detections(split, chosen, detect(model, split, chosen, device, batch_size, amp), error)


def check_boxes(split: Split, images: int | None = None) -> None:
    """Refuses images without a box, on which nothing can be measured or learned, and a lack of COCOeval.

    Args:
        split: the images.
        images: how many of them, the first, are used; ``None`` takes all.

    Raises:
        DataError: they have no boxes.
        ConfigError: the library that is to run COCOeval can't be imported.
    """
    check_evaluator(split.evaluator)
    with_boxes = (_has_boxes(split, number) for number in split.image_ids)
    least = next((count for count, has in enumerate(with_boxes, 1) if has), None)
    if least is not None:
        if images is None or least <= images:
            return
        raise DataError(
            f"{split.name} has no boxes in its first {images} images; use {least} or more (--proxy-images, "
            "YAML: proxy_images), or change their order in the annotations"
        )
    if crowds := len(split.coco.anns):
        raise DataError(
            f"{split.name} has no boxes that count: all {crowds} are crowds (iscrowd), which COCOeval and "
            "training leave out; set iscrowd to 0 in its annotations, or give other data (--data, YAML: data)"
        )
    raise DataError(
        f"{split.name} has no boxes in any of its {len(split)} images; add them to its annotations, or give "
        "other data (--data, YAML: data)"
    )


def _has_boxes(split: Split, number: int) -> bool:
    """Whether the image of this id has a box that counts: one around a crowd does not."""
    return any(not thing["iscrowd"] for thing in split.coco.imgToAnns.get(number, ()))


def score_detections(
    split: Split, chosen: Sequence[int], detections: Detections, error: bool = False
) -> Metrics:
    """Runs COCOeval.

    Args:
        split: the split that holds the true boxes.
        chosen: indices of the evaluated images.
        detections: those of the evaluated images, in any order.
        error: estimate the standard error of mAP too.

    Raises:
        DataError: the chosen images have no boxes.
    """
    image_ids = [split.image_ids[index] for index in chosen]
    if not any(_has_boxes(split, number) for number in image_ids):
        raise DataError(
            f"{split.name} has no boxes in the {len(image_ids)} images that were chosen; take others"
        )
    result = run_cocoeval(split.truth, detections, image_ids, split.evaluator, matches=error)
    numbers = [float(value) if value >= 0 else math.nan for value in result.stats]
    if math.isnan(numbers[0]):
        raise DataError(
            f"{split.name}: COCOeval takes none of the boxes in the {len(image_ids)} images into account, so "
            "mAP is not defined; check the areas and iscrowd of its annotations"
        )
    per_class: dict[str, float] = {}
    for index, number in enumerate(result.category_ids):
        values = result.precision[:, :, index]
        if (values > -1).any():
            name = split.coco.cats[number]["name"]
            key = f"{name} ({number})" if name in per_class else name
            per_class[key] = float(values[values > -1].mean())
    named: dict[str, Any] = dict(zip(NUMBERS, numbers, strict=True))
    maps = [] if result.matches is None else bootstrap_maps(result.matches)
    spread = standard_error(maps) if error else None
    return Metrics(
        **named, per_class=per_class, images=len(image_ids), map_error=spread, bootstrap=tuple(maps)
    )
