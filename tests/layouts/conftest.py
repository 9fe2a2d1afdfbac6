"""Sets of pictures with one bright rectangle each, whose box is then what the pixels show."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from autoprune.data.coco import Split, open_data
from autoprune.errors import DataError

Box = tuple[int, int, int, int]
SIZE = (60, 80)
CLASSES = ("cat", "dog")


def picture(folder: Path, name: str, box: Box | None, size: tuple[int, int] = SIZE, **save: Any) -> Path:
    """A black picture with a white rectangle (x, y, width, height)."""
    pixels = np.zeros((*size, 3), np.uint8)
    if box is not None:
        x, y, width, height = box
        pixels[y : y + height, x : x + width] = 255
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(folder / name, **save)
    return folder / name


def some_boxes(count: int, seed: int = 0) -> list[Box]:
    rng = np.random.default_rng(seed)
    low = rng.integers(1, 30, (count, 2))
    return [
        (int(x), int(y), int(w), int(h))
        for (x, y), (w, h) in zip(low, rng.integers(5, 28, (count, 2)), strict=True)
    ]


def coco(names: list[str], boxes: list[Box], categories: tuple[str, ...] = CLASSES) -> dict[str, Any]:
    """COCO's content; the classes alternate."""
    return {
        "images": [
            {"id": number, "file_name": name, "height": SIZE[0], "width": SIZE[1]}
            for number, name in enumerate(names, 1)
        ],
        "annotations": [
            {"id": number, "image_id": number, "category_id": 1 + number % 2, "bbox": list(box), "area": 1}
            for number, box in enumerate(boxes, 1)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(categories, 1)],
    }


def write_json(file: Path, content: Any) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def yolo_line(label: int, box: Box, size: tuple[int, int] = SIZE) -> str:
    """Class, center, width and height as fractions of the image."""
    x, y, width, height = box
    numbers = ((x + width / 2) / size[1], (y + height / 2) / size[0], width / size[1], height / size[0])
    return " ".join([str(label), *(repr(number) for number in numbers)])


def voc_xml(name: str, box: Box, label: str, first: int = 1, more: str = "") -> str:
    """One object; the first pixel is number ``first``; where that is 1, corners are VOC's own."""
    x, y, width, height = box
    x1, y1, x2, y2 = x + first, y + first, x + width, y + height
    return (
        f"<annotation><filename>{name}</filename><size><width>{SIZE[1]}</width><height>{SIZE[0]}</height>"
        f"<depth>3</depth></size><object><name>{label}</name>{more}<bndbox><xmin>{x1}</xmin><ymin>{y1}</ymin>"
        f"<xmax>{x2}</xmax><ymax>{y2}</ymax></bndbox></object></annotation>"
    )


def white_box(pixels: Any) -> list[int]:
    """x, y, width and height of what is bright in an image [3, height, width]."""
    rows, columns = np.nonzero(np.asarray(pixels)[0] > 127)
    x1, y1 = int(columns.min()), int(rows.min())
    return [x1, y1, int(columns.max()) + 1 - x1, int(rows.max()) + 1 - y1]


def check(split: Split, count: int) -> None:
    """Every box ends on the pixels that it was drawn on, and classes alternate as they were written."""
    assert len(split) == count
    assert split.skipped == []
    for index in range(count):
        image, target = split.get(index)
        (x1, y1, x2, y2) = target["boxes"][0].tolist()
        assert [x1, y1, x2 - x1, y2 - y1] == pytest.approx(white_box(image), abs=1e-4)


def names_of(split: Split) -> list[str]:
    return [path.name for path in split.files]


def refused(data: Path, split: str = "val", **options: Any) -> str:
    with pytest.raises(DataError) as error:
        open_data(data, split, **options)
    assert "\n" not in str(error.value)
    return str(error.value)
