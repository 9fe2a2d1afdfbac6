"""A generated detection set in COCO format: shapes on textured backgrounds, as JPEG and JSON files.

It needs no download, and is hard enough that a small detector has accuracy to lose when it is pruned:
five classes at any rotation and scale, in colors and textures near the background's, occluding each other.
"""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from autoprune import unfinished
from autoprune.errors import ConfigError, DataError
from autoprune.files import unwritable
from autoprune.progress import track
from autoprune.seeding import seed as derive_seed

FORMAT = 1
"""Increased whenever the same settings would give other files."""
MARKER = "shapes.json"
SUPERSAMPLING = 4
MIN_VISIBLE = 0.4
"""Fraction of its area that is visible of every labeled object."""
DIAMETERS = (12 / 128, 70 / 128)
"""Smallest and largest diameter, as fractions of the image's side."""

Rng = np.random.Generator
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Settings:
    """Everything that determines the bytes of a generated set; stored in its `shapes.json`."""

    seed: int
    train: int
    val: int
    test: int
    size: int
    format: int = FORMAT


@dataclass
class Drawn:
    """One object of an image.

    Attributes:
        label: index into `CLASSES`, plus one.
        visible: bool [size, size], the pixels where nothing occludes it.
        area: pixels of the whole shape, including those outside the image and the occluded ones.
    """

    label: int
    visible: Array
    area: int


def make_shapes(folder: Path, seed: int, train: int, val: int, test: int = 0, size: int = 128) -> Path:
    """Writes a generated data set, unless ``folder`` already holds the same one.

    The layout is ``annotations/instances_{train,val,test}.json`` and ``images/``. All files appear in
    ``folder`` at once, so a killed run leaves none there.

    Args:
        folder: folder to write.
        seed: determines every pixel; the same arguments give the same bytes with the same numpy and Pillow.
        train: number of training images.
        val: number of validation images.
        test: number of test images; 0 makes no such split.
        size: height and width of the images in pixels.

    Returns:
        ``folder``.

    Raises:
        ConfigError: a number of images is negative, or ``size`` is below 32.
        DataError: ``folder`` holds something else.
        RunError: the files can't be written.
    """
    if min(train, val, test) < 0 or size < 32:
        raise ConfigError(
            f"cannot make {train}/{val}/{test} images of {size} px; give 0 or more, of 32 px or more"
        )
    settings = Settings(seed, train, val, test, size)
    folder = Path(folder)
    if _is_complete(folder, settings):
        return folder
    if folder.exists() and not (folder / MARKER).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds files that autoprune did not make; choose another folder")
    scratch: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = unfinished.new_folder(folder.parent, folder.name)
        with unfinished.locked(scratch):
            _write(scratch, settings)
        scratch.chmod(0o755)
        if folder.exists():
            shutil.rmtree(folder)
        scratch.rename(folder)
    except OSError as error:
        if not _is_complete(folder, settings):  # otherwise another process made the same one meanwhile
            raise unwritable(folder, error) from error
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def draw(rng: Rng, size: int) -> tuple[Array, list[Drawn]]:
    """Draws one image with one to six objects.

    Args:
        rng: determines everything.
        size: height and width in pixels.

    Returns:
        The picture, uint8 [size, size, 3], and its objects, each with at least `MIN_VISIBLE` of its area
        visible.
    """
    picture = _background(rng, size)
    objects: list[Drawn] = []
    count = int(rng.integers(1, 7))
    for _ in range(4 * count):  # a position that would hide another object is discarded
        if len(objects) == count:
            break
        _add_object(rng, picture, objects)
    picture += np.float32(rng.uniform(0.01, 0.06)) * rng.standard_normal(picture.shape, np.float32)
    return (picture.clip(0, 1) * 255 + 0.5).astype(np.uint8), objects


def box_of(visible: Array) -> tuple[int, int, int, int]:
    """The tight box (x, y, width, height) of the true pixels of a bool mask [height, width]."""
    rows, columns = np.flatnonzero(visible.any(1)), np.flatnonzero(visible.any(0))
    x, y = int(columns[0]), int(rows[0])
    return x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1


def _is_complete(folder: Path, settings: Settings) -> bool:
    try:
        made = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        images = len(os.listdir(folder / "images"))
        splits = sum(
            (folder / f"annotations/instances_{split}.json").is_file() for split in _splits(settings)
        )
    except (OSError, ValueError):
        return False
    whole = settings.train + settings.val + settings.test
    return bool(made == asdict(settings) and images == whole and splits == len(_splits(settings)))


def _splits(settings: Settings) -> dict[str, int]:
    splits = {"train": settings.train, "val": settings.val}
    return splits | {"test": settings.test} if settings.test else splits


def _write(folder: Path, settings: Settings) -> None:
    (folder / "images").mkdir()
    (folder / "annotations").mkdir()
    jobs = [(split, index) for split, count in _splits(settings).items() for index in range(count)]
    contents: dict[str, dict[str, list[dict[str, Any]]]] = {
        split: {
            "images": [],
            "annotations": [],
            "categories": [{"id": label, "name": name} for label, name in enumerate(CLASSES, 1)],
        }
        for split in _splits(settings)
    }
    for split, index in track(jobs, "drawing images"):
        rng = np.random.default_rng(derive_seed(settings.seed, "shapes", split, index))
        picture, objects = draw(rng, settings.size)
        name = f"{split}_{index:05d}.jpg"
        Image.fromarray(picture).save(folder / "images" / name, quality=90)
        content = contents[split]
        content["images"].append(
            {"id": index + 1, "file_name": name, "width": settings.size, "height": settings.size}
        )
        for thing in objects:
            content["annotations"].append(
                {
                    "id": len(content["annotations"]) + 1,
                    "image_id": index + 1,
                    "category_id": thing.label,
                    "bbox": list(box_of(thing.visible)),
                    "area": int(thing.visible.sum()),
                    "iscrowd": 0,
                }
            )
    for split, content in contents.items():
        (folder / f"annotations/instances_{split}.json").write_text(json.dumps(content), encoding="utf-8")
    (folder / MARKER).write_text(json.dumps(asdict(settings)), encoding="utf-8")


def _add_object(rng: Rng, picture: Array, objects: list[Drawn]) -> None:
    """Adds an object to ``picture`` and ``objects``, or nothing where it would hide another."""
    size = len(picture)
    diameter = size * math.exp(rng.uniform(*np.log(DIAMETERS)))
    label = int(rng.integers(len(CLASSES))) + 1
    cover = _cover(list(CLASSES.values())[label - 1], diameter, rng.uniform(0, 2 * math.pi))
    side = len(cover)
    reach = 0.35 * diameter
    left, top = (round(c - side / 2) for c in rng.uniform(reach, size - reach, 2))
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, size), min(top + side, size)
    inside = cover[y0 - top : y1 - top, x0 - left : x1 - left]
    region = (slice(y0, y1), slice(x0, x1))
    visible = np.zeros((size, size), bool)
    visible[region] = inside >= 0.5
    area = int((cover >= 0.5).sum())
    if visible.sum() < MIN_VISIBLE * area:
        return
    if any((other.visible & ~visible).sum() < MIN_VISIBLE * other.area for other in objects):
        return
    fill = _fill(rng, picture[region])
    picture[region] += inside[..., None] * (fill - picture[region])
    for other in objects:
        other.visible &= ~visible
    objects.append(Drawn(label, visible, area))


def _cover(outline: Callable[[], list[Array]], diameter: float, angle: float) -> Array:
    """Fraction of each pixel that the shape covers, by supersampling: float32 [side, side]."""
    side = math.ceil(diameter) + 2
    mask = Image.new("L", (side * SUPERSAMPLING, side * SUPERSAMPLING))
    pen = ImageDraw.Draw(mask)
    turn = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    for ink, corners in zip((255, 0), outline(), strict=False):
        points = (corners @ turn.T * diameter / 2 + side / 2) * SUPERSAMPLING
        pen.polygon([(float(x), float(y)) for x, y in points], fill=ink)
    return np.asarray(mask.reduce(SUPERSAMPLING), np.float32) / 255


def _regular(corners: int, radius: float = 1.0) -> Array:
    turns = np.arange(corners) * (2 * math.pi / corners)
    return np.stack([np.cos(turns), np.sin(turns)], 1) * radius


def _star() -> list[Array]:
    corners = _regular(10)
    corners[1::2] *= 0.45
    return [corners]


CLASSES: dict[str, Callable[[], list[Array]]] = {
    "circle": lambda: [_regular(48)],
    "square": lambda: [_regular(4)],
    "triangle": lambda: [_regular(3)],
    "star": _star,
    "ring": lambda: [_regular(48), _regular(48, 0.55)],
}
"""Class name → outlines within the unit circle, [corners, 2] each: the shape, then its hole if it has one."""


def _background(rng: Rng, size: int) -> Array:
    """A textured background, float32 [size, size, 3]."""
    first, second = rng.uniform(0.1, 0.9, (2, 3))
    fraction = 0.5 + 0.5 * _pattern(rng, size, size)
    picture = first + (second - first) * fraction[..., None]
    clouds = rng.uniform(-1, 1, (int(rng.integers(3, 12)),) * 2).astype(np.float32)
    smooth = np.asarray(Image.fromarray(clouds).resize((size, size), Image.Resampling.BICUBIC))
    return np.asarray(picture + rng.uniform(0, 0.2) * smooth[..., None], np.float32)


def _fill(rng: Rng, behind: Array) -> Array:
    """A texture for an object, [height, width, 3], whose color differs visibly from that ``behind`` it."""
    background = behind.mean((0, 1))
    color = rng.uniform(0, 1, 3)
    while np.linalg.norm(color - background) < 0.3:
        color = rng.uniform(0, 1, 3)
    height, width = behind.shape[:2]
    texture = rng.uniform(0, 0.3) * _pattern(rng, height, width)
    return np.asarray(color.astype(np.float32) + texture[..., None], np.float32)


def _pattern(rng: Rng, height: int, width: int) -> Array:
    """A gradient, stripes, a grid or speckles, float32 [height, width] in [-1, 1]."""
    kind = rng.integers(4)
    angle, wavelength, phase = rng.uniform(0, math.pi), rng.uniform(4, 24), rng.uniform(0, 2 * math.pi)
    if kind == 3:
        return rng.uniform(-1, 1, (height, width)).astype(np.float32)
    y, x = np.arange(height, dtype=np.float32)[:, None], np.arange(width, dtype=np.float32)
    across = np.float32(math.cos(angle)) * x + np.float32(math.sin(angle)) * y
    if kind == 0:
        return np.asarray(2 * (across - across.min()) / max(float(np.ptp(across)), 1.0) - 1, np.float32)
    waves = np.sin(across * np.float32(2 * math.pi / wavelength) + np.float32(phase))
    if kind == 1:
        return np.asarray(waves, np.float32)
    along = np.float32(math.cos(angle)) * y - np.float32(math.sin(angle)) * x
    return np.asarray(waves * np.sin(along * np.float32(2 * math.pi / wavelength)), np.float32)
