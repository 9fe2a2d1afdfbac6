"""`samples.json`: detections of a few detectors in the first images of a split, for viewing."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.data.coco import Split
from autoprune.data.detections import detect
from autoprune.files import write_text
from autoprune.images.decode import UPRIGHT
from autoprune.run.names import SAMPLES_FILE

IMAGES = 6
MIN_SCORE = 0.05
MAX_BOXES = 40  # per detector and image


def save_samples(
    folder: Path,
    models: Mapping[str, nn.Module],
    split: Split,
    device: torch.device | str = "cpu",
    images: int = IMAGES,
    splits: Mapping[str, Split] | None = None,
) -> None:
    """Runs detectors on the first images of a split that have boxes, and writes their detections.

    Args:
        folder: folder of `SAMPLES_FILE`.
        models: detectors in torchvision's form by name, on ``device``.
        split: images and boxes.
        device: device of the images.
        images: number of images, at most.
        splits: for detectors of another input size, ``split`` at that size, by name.

    Raises:
        RunError: the file can't be written.
    """
    chosen = [index for index in range(len(split)) if true_boxes(split, index)][:images]
    samples: list[dict[str, Any]] = [
        {
            "file": str(split.files[index].resolve()),
            "height": split.stored_sizes[index][0],
            "width": split.stored_sizes[index][1],
            **split.views.get(index, UPRIGHT)._asdict(),
            "truth": true_boxes(split, index),
            "found": {},
        }
        for index in chosen
    ]
    by_image = {split.image_ids[index]: sample for index, sample in zip(chosen, samples, strict=True)}
    for name, model in models.items():
        for sample in samples:
            sample["found"][name] = []
        own = (splits or {}).get(name, split)
        for image_id, *box, score, category_id in detect(model, own, chosen, device, batch_size=1).tolist():
            if score >= MIN_SCORE:
                shown = {
                    "box": _corners(box),
                    "label": _label(split, int(category_id)),
                    "score": round(score, 4),
                }
                by_image[int(image_id)]["found"][name].append(shown)
        for sample in samples:
            sample["found"][name].sort(key=lambda shown: -shown["score"])
            del sample["found"][name][MAX_BOXES:]
    write_text(folder / SAMPLES_FILE, json.dumps({"split": split.name, "images": samples}) + "\n")


def true_boxes(split: Split, index: int) -> list[dict[str, Any]]:
    """The boxes of one image, in its pixels before resizing, without crowds."""
    things = split.coco.imgToAnns.get(split.image_ids[index], ())
    return [
        {"box": _corners(thing["bbox"]), "label": _label(split, thing["category_id"])}
        for thing in things
        if not thing["iscrowd"]
    ]


def _corners(box: list[float]) -> list[float]:
    """COCO's x, y, width, height as x1, y1, x2, y2, to a tenth of a pixel."""
    x, y, width, height = box
    return [round(value, 1) for value in (x, y, x + width, y + height)]


def _label(split: Split, category_id: int) -> str:
    return str(split.coco.cats[category_id]["name"])
