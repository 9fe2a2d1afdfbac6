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


# pictures whose box can be seen

BOX = [5, 3, 12, 9]
"""x, y, width and height of what `drawing` draws."""


def drawing(size: tuple[int, int], box: list[int] = BOX) -> Any:
    """A dark picture with a bright rectangle, uint8 [height, width, 3]."""
    pixels = np.full((*size, 3), 10, np.uint8)
    x, y, width, height = box
    pixels[y : y + height, x : x + width] = 250
    return pixels


def turned(upright: Any, orientation: int) -> Any:
    """What a file of this EXIF orientation stores, by EXIF's definition of its first row and column."""
    return {
        1: lambda a: a,  # top, left
        2: lambda a: a[:, ::-1],  # top, right
        3: lambda a: a[::-1, ::-1],  # bottom, right
        4: lambda a: a[::-1],  # bottom, left
        5: lambda a: a.swapaxes(0, 1),  # left, top
        6: lambda a: a[:, ::-1].swapaxes(0, 1),  # right, top
        7: lambda a: a[::-1, ::-1].swapaxes(0, 1),  # right, bottom
        8: lambda a: a[::-1].swapaxes(0, 1),  # left, bottom
    }[orientation](upright)


def save_turned(file: Path, upright: Any, orientation: int, mode: str = "RGB") -> Path:
    """Stores a picture with an EXIF orientation; upright it is what was drawn."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    picture = Image.fromarray(np.ascontiguousarray(turned(upright, orientation)))
    as_mode(picture, mode).save(
        file, exif=exif, **({"quality": 95} if file.suffix in (".jpg", ".webp") else {})
    )
    return file


def as_mode(picture: Any, mode: str) -> Any:
    """An RGB picture of grays in any of Pillow's modes; grays of 16 and 32 bits use 12."""
    gray = np.asarray(picture.convert("L"))
    if mode.startswith("I;16"):
        values = (gray.astype(np.uint16) * 16).astype(">u2" if mode == "I;16B" else "<u2")
        return Image.frombytes(mode, picture.size, values.tobytes())
    if mode in ("I", "F"):
        return Image.fromarray(gray.astype(np.int32) * 16 if mode == "I" else gray.astype(np.float32) / 255)
    if mode == "LAB":
        flat = Image.new("L", picture.size, 128)
        return Image.merge("LAB", (picture.convert("L"), flat, flat))
    if mode == "PA":
        return picture.convert("P").convert("PA")
    return picture.convert(mode, dither=Image.Dither.NONE)


def shown(pixels: Any) -> list[int]:
    """x, y, width and height of what is bright in an image [3, height, width]."""
    rows, columns = np.nonzero(np.asarray(pixels).mean(0) > 127)
    x, y = int(columns.min()), int(rows.min())
    return [x, y, int(columns.max()) + 1 - x, int(rows.max()) + 1 - y]
