"""Data sets in COCO format, as small as a test needs them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoprune.errors import DataError

Record = dict[str, Any]
ONE = [{"id": 1, "name": "thing"}]


def box(number: int, image: int, bbox: Any = (2, 3, 10, 8), category: int = 1, **more: Any) -> Record:
    return {"id": number, "image_id": image, "category_id": category, "bbox": list(bbox), **more}


def write_set(
    folder: Path,
    annotations: list[Any],
    split: str = "val",
    names: tuple[str, ...] = ("a.png", "b.png"),
    size: tuple[int, int] = (30, 40),
    categories: list[Any] = ONE,
) -> Path:
    """A data set with one picture of noise per name; image ids count from 1."""
    (folder / "annotations").mkdir(parents=True, exist_ok=True)
    (folder / "images").mkdir(exist_ok=True)
    height, width = size
    for number, name in enumerate(names):
        noise = np.random.default_rng(number).integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(noise).save(folder / "images" / name)
    records = [
        {"id": number, "file_name": name, "height": height, "width": width}
        for number, name in enumerate(names, 1)
    ]
    content = {"images": records, "annotations": annotations, "categories": categories}
    (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    return folder


def edit(folder: Path, change: Any) -> None:
    """Applies ``change`` to the content of the annotation file."""
    file = folder / "annotations/instances_val.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")


def one_line(error: pytest.ExceptionInfo[DataError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
