"""Finds and reads COCO annotation files, and skips the entries that can't be used."""

import contextlib
import io
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools.coco import COCO

from autoprune.config import DataPaths
from autoprune.data.images import header_size, is_rotated, threads
from autoprune.errors import DataError

YEARS = ("", "2017", "2014")
HINT = (
    "give --data (YAML: data) a folder with annotations/instances_{train,val}.json and images/, "
    "or try `autoprune demo`, which makes its own"
)


@dataclass(frozen=True)
class Annotations:
    """One annotation file, reduced to what can be used.

    Attributes:
        coco: pycocotools' index of the usable images and annotations; annotations are renumbered from 1.
        files: path of each usable image, by image id.
        sizes: its stored (height, width) in pixels, by image id.
        skipped: one line per image or annotation that was skipped, with the reason.
    """

    coco: COCO
    files: dict[int, Path]
    sizes: dict[int, tuple[int, int]]
    skipped: tuple[str, ...]


def find_split(data: Path | DataPaths, split: str) -> tuple[Path, tuple[Path, ...]]:
    """Finds a split's annotation file and the folders that may hold its images.

    Raises:
        DataError: the folder, the file or the split does not exist.
    """
    if isinstance(data, DataPaths):
        paths = dict(data).get(split)
        if paths is None:
            raise DataError(
                f"the YAML field data has the splits {', '.join(dict(data))}, and no {split!r}; add that to "
                f"data, with its `annotations` and `images`"
            )
        for path in (paths.annotations, paths.images):
            if not path.exists():
                raise DataError(f"{path} does not exist; check data.{split} in the YAML file")
        return paths.annotations, (paths.images,)
    if not data.is_dir():
        raise DataError(f"no data folder {data}; {HINT}")
    for year in YEARS:
        file = data / f"annotations/instances_{split}{year}.json"
        if file.is_file():
            folders = [
                data / name
                for name in (f"images/{split}{year}", f"{split}{year}", f"images/{split}", "images")
            ]
            existing = tuple(folder for folder in folders if folder.is_dir())
            if not existing:
                raise DataError(f"{data} has neither images/ nor {split}{year}/; {HINT}")
            return file, existing
    present = [file.stem.removeprefix("instances_") for file in data.glob("annotations/instances_*.json")]
    known = f"it has {', '.join(sorted(present))}" if present else HINT
    raise DataError(f"{data} has no annotations/instances_{split}.json; {known}")


def read_annotations(file: Path, folders: tuple[Path, ...]) -> Annotations:
    """Reads an annotation file and the header of every image; the last few files are cached.

    Raises:
        DataError: the file is not COCO, or none of its images can be used.
    """
    try:
        stamp = file.stat().st_mtime_ns
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; check --data (YAML: data)") from error
    return _read(file, folders, stamp)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppresses what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@lru_cache(maxsize=3)  # a run opens its splits several times; COCO's take half a minute each
def _read(file: Path, folders: tuple[Path, ...], stamp: int) -> Annotations:
    content = _load(file)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list):
            raise DataError(f"{file} is not in COCO format: it has no list `{part}`; {HINT}")
    categories = _categories(file, content["categories"])
    skipped: list[str] = []
    images, files = _images(content["images"], folders, skipped)
    if not images:
        reason = (
            f"none of its {len(content['images'])} images can be used ({skipped[0]})"
            if skipped
            else "no images"
        )
        raise DataError(f"{file}: {reason}; images are looked for in {', '.join(map(str, folders))}")
    sizes = {number: image.size for number, image in files.items()}
    annotations = _annotations(content["annotations"], images, set(categories), sizes, skipped)
    clean = COCO()
    clean.dataset = {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": list(categories.values()),
    }
    with silence():
        clean.createIndex()
    paths = {number: image.path for number, image in files.items()}
    return Annotations(clean, paths, sizes, tuple(skipped))


def _load(file: Path) -> Mapping[str, Any]:
    try:
        with silence():
            return dict(COCO(str(file)).dataset)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; check --data (YAML: data)") from error
    except (ValueError, AssertionError, KeyError, TypeError, AttributeError, RecursionError) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise DataError(f"{file} is not in COCO format ({problem}); {HINT}") from error


def _categories(file: Path, records: list[Any]) -> dict[int, dict[str, Any]]:
    categories: dict[int, dict[str, Any]] = {}
    for record in records:
        number = record.get("id") if isinstance(record, dict) else None
        if type(number) is not int or not isinstance(record.get("name"), str):
            raise DataError(f"{file}: category {record!r} needs an integer id and a name; fix it in the file")
        if number in categories:
            raise DataError(f"{file}: two categories have the id {number}; fix it in the file")
        categories[number] = record
    if not categories:
        raise DataError(f"{file} lists no categories; there is nothing to detect")
    return categories


class _ImageFile(NamedTuple):
    """The file of an image record, and its stored (height, width) in pixels."""

    path: Path
    size: tuple[int, int]


def _images(
    records: list[Any], folders: tuple[Path, ...], skipped: list[str]
) -> tuple[dict[int, dict[str, Any]], dict[int, _ImageFile]]:
    """The records and files, by id, of the images whose file exists and has the size of the record."""
    listed: dict[int, dict[str, Any]] = {}
    for record in records:
        number = record.get("id") if isinstance(record, dict) else None
        if type(number) is not int or not isinstance(record.get("file_name"), str):
            skipped.append(f"image {record!r:.80}: it needs an integer id and a file_name")
        elif number in listed:
            skipped.append(
                f"image {record['file_name']}: its id {number} is taken by {listed[number]['file_name']}"
            )
        else:
            listed[number] = record
    with ThreadPoolExecutor(threads()) as pool:
        located = list(pool.map(lambda record: _locate(record, folders), listed.values()))
    images, files = {}, {}
    for (number, record), file in zip(listed.items(), located, strict=True):
        if isinstance(file, str):
            skipped.append(f"image {record['file_name']}: {file}")
            continue
        images[number] = {**record, "height": file.size[0], "width": file.size[1]}
        files[number] = file
    return images, files


def _locate(record: Mapping[str, Any], folders: Iterable[Path]) -> _ImageFile | str:
    """The image's file, or what is wrong with it."""
    candidates = [folder / record["file_name"] for folder in folders]
    path = next((candidate for candidate in candidates if os.path.isfile(candidate)), None)
    if path is None:
        return f"there is no file {candidates[-1]}"
    try:
        height, width = header_size(path)
    except DataError as error:
        return str(error)
    listed = (record.get("height", height), record.get("width", width))
    if listed == (height, width):
        return _ImageFile(path, (height, width))
    rotated = listed == (width, height) and is_rotated(path)
    reason = ", as its EXIF rotation is not applied; save it upright" if rotated else ""
    return f"it is {width}x{height} pixels, the annotations say {listed[1]}x{listed[0]}{reason}"


def _annotations(
    records: list[Any],
    images: Mapping[int, Mapping[str, Any]],
    categories: set[int],
    sizes: Mapping[int, tuple[int, int]],
    skipped: list[str],
) -> list[dict[str, Any]]:
    kept: list[dict[str, Any]] = []
    for record in records:
        if (problem := _problem(record, images, categories, sizes)) is not None:
            image = images.get(record.get("image_id"), {})
            skipped.append(f"annotation {record.get('id')} ({image.get('file_name', 'no image')}): {problem}")
            continue
        x, y, width, height = (float(number) for number in record["bbox"])
        area = record.get("area")
        kept.append(
            {
                "id": len(kept) + 1,  # COCOeval treats id 0 as no annotation
                "image_id": record["image_id"],
                "category_id": record["category_id"],
                "bbox": [x, y, width, height],
                "area": area if _is_number(area) else width * height,
                "iscrowd": int(bool(record.get("iscrowd", 0))),
            }
        )
    return kept


def _problem(
    record: Mapping[str, Any],
    images: Mapping[int, Any],
    categories: set[int],
    sizes: Mapping[int, tuple[int, int]],
) -> str | None:
    if record["image_id"] not in images:
        return f"its image {record['image_id']} is missing"
    if record["category_id"] not in categories:
        return f"its category {record['category_id']} is unknown"
    box = record.get("bbox")
    if not isinstance(box, list) or len(box) != 4 or not all(_is_number(number) for number in box):
        return f"its box {box!r:.60} is not [x, y, width, height]"
    x, y, width, height = box
    if width <= 0 or height <= 0:
        return f"its box {box} has no area"
    image_height, image_width = sizes[record["image_id"]]
    if x >= image_width or y >= image_height or x + width <= 0 or y + height <= 0:
        return f"its box {box} lies outside the image ({image_width}x{image_height})"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
