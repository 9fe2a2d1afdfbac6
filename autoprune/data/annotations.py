"""Finds and reads COCO annotation files, and skips the entries that can't be used."""

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from autoprune.data.images import UPRIGHT, View
from autoprune.data.locate import ImageFile, Others, locate
from autoprune.errors import DataError
from autoprune.layouts.find import convert, stamp
from autoprune.layouts.holdout import take_part
from autoprune.layouts.source import HINT, Source


@dataclass(frozen=True)
class Annotations:
    """One annotation file, reduced to what can be used.

    Attributes:
        coco: pycocotools' index of the usable images and annotations; annotations are renumbered from 1.
        files: path of each usable image, by image id.
        sizes: its (height, width) in the pixels of its boxes, by image id.
        skipped: one line per image or annotation that was skipped, with the reason.
        views: how to see the pixels of an image, by image id, where that is not upright as they are.
        notes: one line for each decision on the images or boxes together.
    """

    coco: COCO
    files: dict[int, Path]
    sizes: dict[int, tuple[int, int]]
    skipped: tuple[str, ...]
    views: Mapping[int, View]
    notes: tuple[str, ...]


def read_annotations(file: Path, folders: tuple[Path, ...]) -> Annotations:
    """Reads a COCO JSON file; see `read_source`."""
    return read_source(Source(file, folders))


def read_source(source: Source) -> Annotations:
    """Reads a split's annotations and the header of every image; the last few splits are cached.

    Raises:
        DataError: the file is not what its layout says, or none of its images can be used.
    """
    return _read(source, stamp(source))


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Suppresses what pycocotools prints."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


@lru_cache(maxsize=3)  # a run opens its splits several times; COCO's take half a minute each
def _read(source: Source, _stamp: Any) -> Annotations:
    file, content = source.file, _content(source)
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list):
            raise DataError(f"{file} is not in COCO format: it has no list `{part}`; {HINT}")
    categories = _categories(file, content["categories"])
    if source.part is not None:
        content = take_part(content, source.part)
    folders = content.get("folders", source.folders)
    skipped: list[str] = list(content.get("skipped", ()))
    notes: list[str] = list(content.get("notes", ()))
    images, files = _images(content["images"], folders, skipped, notes, lambda: _whole(source))
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
    views = {number: image.view for number, image in files.items() if image.view != UPRIGHT}
    return Annotations(clean, paths, sizes, tuple(skipped), views, tuple(notes))


def _content(source: Source) -> Mapping[str, Any]:
    """A split's annotations as they are, as COCO's content."""
    return _load(source.file) if source.kind == "coco" else convert(source)


def _whole(source: Source) -> Iterator[tuple[list[dict[str, Any]], tuple[Path, ...]]]:
    """The image records of the splits that are trained or validated on, with the folders of their images."""
    for split in source.whole or (source,):
        content = _content(split)
        records = content.get("images")
        records = (
            [record for record in records if isinstance(record, dict)] if isinstance(records, list) else []
        )
        records = [record for record in records if "file_name" in record]
        yield records, content.get("folders", split.folders)


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


def _images(
    records: list[Any], folders: tuple[Path, ...], skipped: list[str], notes: list[str], whole: Others
) -> tuple[dict[int, dict[str, Any]], dict[int, ImageFile]]:
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
    located = locate(list(listed.values()), folders, whole)
    notes += located.notes
    images, files = {}, {}
    for (number, record), file in zip(listed.items(), located.files, strict=True):
        if isinstance(file, str):
            skipped.append(f"image {record['file_name']}: {file}")
            continue
        images[number] = {**record, "height": file.size[0], "width": file.size[1]}
        files[number] = file
    return images, files


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
