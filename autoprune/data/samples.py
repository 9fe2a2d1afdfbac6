"""`samples.json`: what a few detectors find in the first images of a split, to be looked at."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.data.coco import Split
from autoprune.data.evaluate import detect
from autoprune.files import write_text

SAMPLES_FILE = "samples.json"
IMAGES = 6
LEAST_SCORE = 0.05
MOST_BOXES = 40  # of one detector in one image


def save_samples(
    folder: Path,
    models: Mapping[str, nn.Module],
    split: Split,
    device: torch.device | str = "cpu",
    images: int = IMAGES,
) -> None:
    """Runs detectors on the first images of a split that have boxes, and writes what they find.

    Args:
        folder: where `SAMPLES_FILE` goes.
        models: detectors in torchvision's form by name, on ``device``.
        split: images and boxes.
        device: where the images go.
        images: how many, if there are as many.

    Raises:
        RunError: the file can't be written.
    """
    chosen = [place for place in range(len(split)) if _truth(split, place)][:images]
    samples: list[dict[str, Any]] = [
        {
            "file": str(split.files[place].resolve()),
            "height": split.stored_sizes[place][0],
            "width": split.stored_sizes[place][1],
            "truth": _truth(split, place),
            "found": {},
        }
        for place in chosen
    ]
    places = {split.image_ids[place]: sample for place, sample in zip(chosen, samples, strict=True)}
    for name, model in models.items():
        for sample in samples:
            sample["found"][name] = []
        for number, *box, score, category in detect(model, split, chosen, device, batch_size=1):
            if score >= LEAST_SCORE:
                found = {"box": _corners(box), "label": _label(split, category), "score": round(score, 4)}
                places[int(number)]["found"][name].append(found)
        for sample in samples:
            sample["found"][name].sort(key=lambda found: -found["score"])
            del sample["found"][name][MOST_BOXES:]
    write_text(folder / SAMPLES_FILE, json.dumps({"split": split.name, "images": samples}) + "\n")


def _truth(split: Split, place: int) -> list[dict[str, Any]]:
    """The boxes of one image, in stored pixels, without the crowds."""
    things = split.coco.imgToAnns.get(split.image_ids[place], ())
    return [
        {"box": _corners(thing["bbox"]), "label": _label(split, thing["category_id"])}
        for thing in things
        if not thing["iscrowd"]
    ]


def _corners(box: list[float]) -> list[float]:
    """COCO's x, y, width, height as x1, y1, x2, y2, to a tenth of a pixel."""
    x, y, width, height = box
    return [round(value, 1) for value in (x, y, x + width, y + height)]


def _label(split: Split, category: float) -> str:
    return str(split.coco.cats[int(category)]["name"])
