"""mAP: pycocotools' COCOeval on boxes in pixels of the stored images."""

import copy
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import nn

from autoprune.data.annotations import silence
from autoprune.data.coco import Split
from autoprune.data.standard_error import bootstrap_maps, standard_error
from autoprune.errors import DataError, ModelError
from autoprune.progress import track


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


class Detection(NamedTuple):
    """One detection, as COCO's results files hold it.

    Attributes:
        image_id: COCO's id of the image.
        box: x, y, width, height in stored pixels.
        score: in [0, 1].
        category_id: COCO's id of the class.
    """

    image_id: int
    box: list[float]
    score: float
    category_id: int


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
    """Refuses images without a box, on which nothing can be measured or learned.

    Args:
        split: the images.
        images: how many of them, the first, are used; ``None`` takes all.

    Raises:
        DataError: they have no boxes.
    """
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


def detect(
    model: nn.Module,
    split: Split,
    chosen: Sequence[int],
    device: torch.device | str = "cpu",
    batch_size: int = 8,
    amp: bool = False,
) -> list[Detection]:
    """Runs a detector on images of a split; see `evaluate` for the arguments.

    Args:
        model: not modified.
        split: the images.
        chosen: their indices.
        device: device of the images.
        batch_size: images per forward pass.
        amp: bfloat16 autocast, on CUDA only.

    Returns:
        The detections of all images; labels that are not in the data are omitted.

    Raises:
        ModelError: the model does not return what torchvision's detectors do.
    """
    device = torch.device(device)
    # channels_last takes a third off the time of a convolutional detector on a CPU
    model = copy.deepcopy(model).to(memory_format=torch.channels_last).eval()
    with (
        torch.no_grad(),
        torch.autocast(device.type, torch.bfloat16, enabled=amp and device.type == "cuda"),
    ):
        return _detect(model, split, chosen, device, batch_size)


def score_detections(
    split: Split, chosen: Sequence[int], detections: Sequence[Detection], error: bool = False
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
    with silence():
        result = COCOeval(split.coco, _as_coco(split, detections), "bbox")
        result.params.imgIds = image_ids
        result.evaluate()
        result.accumulate()
        result.summarize()
    numbers = [float(value) if value >= 0 else math.nan for value in result.stats]
    if math.isnan(numbers[0]):
        raise DataError(
            f"{split.name}: COCOeval takes none of the boxes in the {len(image_ids)} images into account, so "
            "mAP is not defined; check the areas and iscrowd of its annotations"
        )
    # of all areas and with the most detections: [IoU, recall, category]
    precision = result.eval["precision"][:, :, :, 0, -1]
    per_class: dict[str, float] = {}
    for index, number in enumerate(result.params.catIds):
        values = precision[:, :, index]
        if (values > -1).any():
            name = split.coco.cats[number]["name"]
            key = f"{name} ({number})" if name in per_class else name
            per_class[key] = float(values[values > -1].mean())
    named: dict[str, Any] = dict(zip(NUMBERS, numbers, strict=True))
    maps = bootstrap_maps(result) if error else []
    spread = standard_error(maps) if error else None
    return Metrics(
        **named, per_class=per_class, images=len(image_ids), map_error=spread, bootstrap=tuple(maps)
    )


def _detect(
    model: nn.Module, split: Split, chosen: Sequence[int], device: torch.device, batch_size: int
) -> list[Detection]:
    detections: list[Detection] = []
    starts = range(0, len(chosen), batch_size)
    for start in track(starts, "evaluation"):
        indices = chosen[start : start + batch_size]
        pictures, _ = split.batch(indices, device)
        outputs = model(pictures)
        if not _has_torchvisions_form(outputs, len(pictures)):
            raise ModelError(
                f"in eval mode {type(model).__name__} must return one {{boxes, scores, labels}} per image of "
                "a list, boxes [n, 4] with n scores and n labels, as torchvision's detectors do; fix the "
                "factory that model names"
            )
        for index, output in zip(indices, outputs, strict=True):
            detections += detections_of(split, index, output)
    return detections


def _has_torchvisions_form(outputs: Any, count: int) -> bool:
    if not isinstance(outputs, list | tuple) or len(outputs) != count:
        return False
    return all(isinstance(output, dict) and _is_detections(output) for output in outputs)


def _is_detections(output: dict[str, Any]) -> bool:
    parts: list[Any] = [output.get(name) for name in ("boxes", "scores", "labels")]
    if not all(isinstance(part, torch.Tensor) for part in parts):
        return False
    boxes, scores, labels = (tuple(part.shape) for part in parts)
    return scores == labels and len(scores) == 1 and boxes == (*scores, 4)


def detections_of(split: Split, index: int, output: dict[str, torch.Tensor]) -> list[Detection]:
    """The detections of one image; labels that are not in the data are omitted.

    Args:
        split: holds the image.
        index: its index.
        output: ``boxes`` [n, 4] in pixels of the image at the detector's size, ``scores`` and ``labels`` [n].

    Raises:
        ModelError: a box or a score is not finite.
    """
    (height, width), (new_height, new_width) = split.stored_sizes[index], split.sizes[index]
    if not (output["boxes"].isfinite().all() and output["scores"].isfinite().all()):
        raise ModelError(
            f"the detector gives boxes or scores that are NaN or infinite on {split.files[index]}; "
            "its weights are of a training that diverged, or its factory is at fault"
        )
    boxes = output["boxes"].double().cpu().numpy().reshape(-1, 4) * (
        [width / new_width, height / new_height] * 2
    )
    scores, labels = output["scores"].double().cpu().numpy(), output["labels"].cpu().numpy()
    corners = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)
    return [
        Detection(split.image_ids[index], box, score, split.category_ids[label])
        for box, score, label in zip(corners.tolist(), scores.tolist(), labels.tolist(), strict=True)
        if label in split.category_ids
    ]


def _as_coco(split: Split, detections: Sequence[Detection]) -> COCO:
    """Detections as pycocotools indexes them; its `loadRes` refuses an empty list."""
    coco = COCO()
    coco.dataset = {
        "images": split.coco.dataset["images"],
        "categories": split.coco.dataset["categories"],
        "annotations": [
            {
                "id": number,
                "image_id": detection.image_id,
                "bbox": detection.box,
                "area": detection.box[2] * detection.box[3],
                "iscrowd": 0,
                "score": detection.score,
                "category_id": detection.category_id,
            }
            for number, detection in enumerate(detections, 1)
        ],
    }
    coco.createIndex()
    return coco
