"""Reads the annotations of a split, of any layout, and skips the entries that can't be used."""

import contextlib
import io
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from pycocotools.coco import COCO

from autoprune.errors import DataError
from autoprune.images.decode import UPRIGHT, View
from autoprune.images.locate import ImageFile, Others, find_images, locate
from autoprune.layouts.find import convert, stamp
from autoprune.layouts.holdout import in_part
from autoprune.layouts.image_folder import image_folders
from autoprune.layouts.source import HINT, Part, Source
from autoprune.records.clean import AnnotationReader, ImageList, Notes, read_categories
from autoprune.records.fields import printable, shown
from autoprune.records.json_file import read_json


@dataclass(frozen=True)
class Annotations:
    """One annotation file, reduced to what can be used.

    Attributes:
        coco: pycocotools' index of the usable images and annotations; annotations are renumbered from 1.
        files: path of each usable image, by image id.
        sizes: its (height, width) in the pixels of its boxes, by image id.
        skipped: one line per image or annotation that was skipped, with the reason.
        views: how to see the pixels of an image, by image id, where that is not upright as they are.
        notes: one line for each decision on the images or boxes together, and for each kind of fields that
            were read in another way than they are written.
    """

    coco: COCO
    files: dict[int, Path]
    sizes: dict[int, tuple[int, int]]
    skipped: tuple[str, ...]
    views: Mapping[int, View]
    notes: tuple[str, ...]


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
    return _clean(_content(source), source)


def _clean(content: Mapping[str, Any], source: Source) -> Annotations:
    """Reduces the content of an annotation file to what can be used, and reads the header of every image.

    Args:
        content: ``images``, ``annotations`` and ``categories`` as in COCO's files, and what else a layout
            adds (see `layouts.source.Content`); not changed.
        source: the split.

    Raises:
        DataError: a part is missing, its categories or ids are ambiguous, or none of its images can be used.
    """
    file = source.file
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list):
            raise DataError(f"{file} is not in COCO format: it has no list `{part}`; {HINT}")
    categories, category_ids = read_categories(file, content["categories"])
    skipped: list[str] = list(content.get("skipped", ()))
    notes: list[str] = list(content.get("notes", ()))
    listed = ImageList(content["images"], skipped)
    folders, lines = _folders(source, content, listed.records)
    notes += lines
    records, others = _part(listed.records, folders, source.part)
    images, files, first_of = _images(records, folders, skipped, notes, partial(_whole, source))
    if not images:
        count = f"{len(content['images'])} images" if content["images"] else "images"
        reason = f"none of its {count} can be used ({skipped[0]})" if skipped else "no images"
        below = f", and no folder below {source.roots[-1]} holds all of them; {HINT}" if source.roots else ""
        raise DataError(f"{file}: {reason}; images are looked for in {', '.join(map(str, folders))}{below}")
    merged = {number: images[first] for number, first in first_of.items()}
    reader = AnnotationReader(images | merged, listed.ids, category_ids)
    twice = {first_of.get(number, number): names for number, names in listed.twice.items()}
    annotations: list[dict[str, Any]] = []
    for place, record in enumerate(content["annotations"]):
        try:
            if others and isinstance(record, dict) and listed.ids.number(record.get("image_id")) in others:
                continue
            cleaned = reader.read(record, place)
        except DataError as error:
            raise DataError(f"{file}: annotations[{place}]: {error}") from error
        if cleaned is None:
            continue
        if isinstance(cleaned, str):
            skipped.append(cleaned)
            continue
        if (names := twice.get(cleaned["image_id"])) is not None:
            raise DataError(
                f"{file}: {names[0]} and {names[1]} have the same id, so it is open whose the boxes are; "
                "give each image its own id in the file"
            )
        annotations.append({"id": len(annotations) + 1, **cleaned})  # COCOeval treats id 0 as no annotation
    if source.kind == "coco":
        reader.convention.refuse(file)
    _refuse_same_names(file, categories, {thing["category_id"] for thing in annotations})
    index = COCO()
    index.dataset = {
        "images": list(images.values()),
        "annotations": annotations,
        "categories": list(categories.values()),
    }
    with silence():
        index.createIndex()
    paths = {number: image.path for number, image in files.items()}
    sizes = {number: image.size for number, image in files.items()}
    views = {number: image.view for number, image in files.items() if image.view != UPRIGHT}
    return Annotations(index, paths, sizes, tuple(skipped), views, (*notes, *reader.notes.lines()))


def _refuse_same_names(file: Path, categories: Mapping[int, Mapping[str, Any]], used: set[int]) -> None:
    """Refuses two categories of one name that both have boxes: they may be one class, or two.

    Raises:
        DataError: names them.
    """
    first_of: dict[str, int] = {}
    for number in sorted(used):
        name = str(categories[number]["name"]).strip()
        if (first := first_of.setdefault(name, number)) != number:
            raise DataError(
                f"{file}: the categories {first} and {number} are both named {shown(name)} and both have "
                "boxes; rename one, or give all boxes to one"
            )


def _content(source: Source) -> Mapping[str, Any]:
    """A split's annotations as they are, as COCO's content."""
    return _load(source.file) if source.kind == "coco" else convert(source)


def _part(
    records: Mapping[int, Mapping[str, Any]], folders: tuple[Path, ...], part: Part | None
) -> tuple[Mapping[int, Mapping[str, Any]], set[int]]:
    """The image records of a part, by number, and the numbers of the other part's."""
    if part is None:
        return records, set()
    names = [str(record["file_name"]) for record in records.values()]
    paths = find_images(list(records.values()), folders)
    # a link and its target are one image
    files = [
        name if path is None else os.path.realpath(path) for name, (path, _) in zip(names, paths, strict=True)
    ]
    chosen = dict(zip(records, in_part(list(zip(names, files, strict=True)), part), strict=True))
    kept = {number: record for number, record in records.items() if chosen[number]}
    return kept, {number for number in records if not chosen[number]}


def _whole(source: Source) -> Iterator[tuple[list[dict[str, Any]], tuple[Path, ...]]]:
    """The image records of the splits that are trained or validated on, with the folders of their images."""
    for split in source.whole or (source,):
        content = _content(split)
        records = content.get("images")
        listed = ImageList(records if isinstance(records, list) else [], []).records
        yield list(listed.values()), _folders(split, content, listed)[0]


def _folders(
    source: Source, content: Mapping[str, Any], records: Mapping[int, Mapping[str, Any]]
) -> tuple[tuple[Path, ...], list[str]]:
    """Where a split's images are, and what is to be said of it."""
    return (content["folders"], []) if "folders" in content else image_folders(source, list(records.values()))


def _load(file: Path) -> Mapping[str, Any]:
    """The mapping that a JSON file holds."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise DataError(f"{file} is not in COCO format (a {type(content).__name__}, no mapping); {HINT}")
    return content


def _images(
    listed: Mapping[int, Mapping[str, Any]],
    folders: tuple[Path, ...],
    skipped: list[str],
    notes: list[str],
    whole: Others,
) -> tuple[dict[int, dict[str, Any]], dict[int, ImageFile], dict[int, int]]:
    """The records and files, by id, of the images whose file exists and has the size of the record.

    Of several records for one file the first is kept; the ids of the others are returned with the first's.
    """
    located = locate(list(listed.values()), folders, whole)
    notes += located.notes
    images: dict[int, dict[str, Any]] = {}
    files: dict[int, ImageFile] = {}
    numbers: dict[Path, int] = {}
    first_of: dict[int, int] = {}
    merged = Notes()
    for (number, record), file in zip(listed.items(), located.files, strict=True):
        name = printable(record["file_name"])
        if isinstance(file, str):
            skipped.append(f"image {name}: {printable(file)}")
        elif (first := numbers.setdefault(file.path, number)) == number:
            images[number] = {**record, "height": file.size[0], "width": file.size[1]}
            files[number] = file
        elif file == files[first]:
            first_of[number] = first
            merged.add(
                "images listed twice are one, with the boxes of both", f"{name}, ids {first} and {number}"
            )
        else:  # its EXIF entry turns it, and each record has another of the two sizes
            height, width = files[first].size
            skipped.append(f"image {name}: it is listed twice, first as {width}x{height}; keep the right one")
    notes += merged.lines()
    return images, files, first_of
