"""Finds and reads COCO annotation files, and skips the entries that can't be used."""

import contextlib
import io
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from pycocotools.coco import COCO

from autoprune.config import DataPaths
from autoprune.data.field_readers import printable
from autoprune.data.file_names import existing_name
from autoprune.data.images import header_size, is_rotated, threads
from autoprune.data.records import AnnotationReader, ImageList, read_categories
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
        notes: one line per kind of fields that were read in another way than they are written.
    """

    coco: COCO
    files: dict[int, Path]
    sizes: dict[int, tuple[int, int]]
    skipped: tuple[str, ...]
    notes: tuple[str, ...] = ()


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
    return clean(_load(file), file, folders)


def clean(content: Mapping[str, Any], file: Path, folders: tuple[Path, ...]) -> Annotations:
    """Reduces the content of an annotation file to what can be used, and reads the header of every image.

    Args:
        content: ``images``, ``annotations`` and ``categories`` as in COCO's files; not changed.
        file: where it is from, for messages.
        folders: where the images may be.

    Raises:
        DataError: a part is missing, its categories or ids are ambiguous, or none of its images can be used.
    """
    for part in ("images", "annotations", "categories"):
        if not isinstance(content.get(part), list):
            raise DataError(f"{file} is not in COCO format: it has no list `{part}`; {HINT}")
    categories, category_ids = read_categories(file, content["categories"])
    skipped: list[str] = []
    listed = ImageList(content["images"], skipped)
    images, files = _images(listed.records, folders, skipped)
    if not images:
        reason = (
            f"none of its {len(content['images'])} images can be used ({skipped[0]})"
            if skipped
            else "no images"
        )
        raise DataError(f"{file}: {reason}; images are looked for in {', '.join(map(str, folders))}")
    reader = AnnotationReader(images, listed.ids, category_ids)
    annotations: list[dict[str, Any]] = []
    for place, record in enumerate(content["annotations"]):
        cleaned = reader.read(record, place)
        if isinstance(cleaned, str):
            skipped.append(cleaned)
            continue
        if (names := listed.twice.get(cleaned["image_id"])) is not None:
            raise DataError(
                f"{file}: {names[0]} and {names[1]} have the same id, so it is open whose the boxes are; "
                "give each image its own id in the file"
            )
        annotations.append({"id": len(annotations) + 1, **cleaned})  # COCOeval treats id 0 as no annotation
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
    return Annotations(index, paths, sizes, tuple(skipped), reader.notes.lines())


def _load(file: Path) -> Mapping[str, Any]:
    """The content of a JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte order mark."""
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}; check --data (YAML: data)") from error
    except (ValueError, RecursionError) as error:
        problem = printable(f"{type(error).__name__}: {error}")[:200]
        raise DataError(f"{file} is not in COCO format ({problem}); {HINT}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is not in COCO format (a {type(content).__name__}, no mapping); {HINT}")
    return content


class _ImageFile(NamedTuple):
    """The file of an image record, and its stored (height, width) in pixels."""

    path: Path
    size: tuple[int, int]


def _images(
    listed: Mapping[int, Mapping[str, Any]], folders: tuple[Path, ...], skipped: list[str]
) -> tuple[dict[int, dict[str, Any]], dict[int, _ImageFile]]:
    """The records and files, by id, of the images whose file exists and has the size of the record."""

    def find(record: Mapping[str, Any]) -> _ImageFile | str:
        return _locate({**record, "file_name": existing_name(record["file_name"], folders)}, folders)

    with ThreadPoolExecutor(threads()) as pool:
        located = list(pool.map(find, listed.values()))
    clashing = _clashing(listed.values(), located)
    images, files = {}, {}
    for (number, record), file in zip(listed.items(), located, strict=True):
        name = printable(record["file_name"])
        if isinstance(file, str):
            skipped.append(f"image {name}: {printable(file)}")
        elif file.path in clashing:
            skipped.append(f"image {name}: another file_name leads to {file.path} too; write both in full")
        else:
            images[number] = {**record, "height": file.size[0], "width": file.size[1]}
            files[number] = file
    return images, files


def _clashing(records: Iterable[Mapping[str, Any]], located: Sequence[_ImageFile | str]) -> set[Path]:
    """The files to which several different names of records lead, so that it is open which is meant."""
    names: dict[Path, set[str]] = {}
    for record, file in zip(records, located, strict=True):
        if not isinstance(file, str):
            names.setdefault(file.path, set()).add(record["file_name"])
    return {path for path, each in names.items() if len(each) > 1}


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
