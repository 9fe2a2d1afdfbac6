"""Finds and reads YOLO data: images, and one text file of boxes for each; its YAML file is in `yolo_yaml`."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from autoprune.errors import DataError
from autoprune.images.decode import header_size
from autoprune.layouts.source import (
    UNDIVIDED,
    Content,
    Layout,
    Source,
    files_in,
    in_any_case,
    read_lines,
    split_of,
)
from autoprune.layouts.yolo_yaml import YAML, is_data, plain_path, read_data, read_names, yaml_layout

NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
"""Where the names of the classes are without a YAML file, one a line."""
EDGE = 0.01
"""How far a coordinate may lie beyond the image, in fractions of it, as Ultralytics allows."""
LONGEST_LINE, LONGEST_NAME = 2048, 255
"""Of a path in a list of images, in characters, and of a folder or file in it, in bytes, as systems allow."""


def find_yolo(folder: Path) -> list[Layout]:
    """The readings of a folder as YOLO: one for each YAML file, else one where a text file has the names."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in YAML and path.is_file())
    if layouts := [yaml_layout(file) for file in files if is_data(file)]:
        return layouts
    named = (in_any_case(folder / name) for name in NAME_FILES)
    names = next((file for file in named if file.is_file()), None)
    if names is None:
        return []
    divided = {
        split: Source(names, (path,), "yolo")
        for place in (folder / "images", folder)
        for path in (sorted(place.iterdir()) if place.is_dir() else ())
        if path.is_dir() and (split := split_of(path.name))
    }
    if not divided and not any(os.path.isfile(_label_file(path)) for path in _images_in(folder)):
        return []
    return [Layout("YOLO", names, divided or {UNDIVIDED: Source(names, (folder,), "yolo")})]


def read_yolo(source: Source) -> Content:
    """The images of a split and their boxes, in upright pixels.

    Raises:
        DataError: there are no images, none of them has a label file, or the names are missing.
    """
    names = read_names(source.file)
    images, annotations, skipped, unlabelled = [], [], [], []
    files = list(dict.fromkeys(path for place in source.folders for path in _listed(place)))
    if not files:
        raise DataError(
            f"{source.file}: there are no images in {', '.join(map(str, source.folders))}; add them"
        )
    folder = _folder_of(source.file, files)
    keypoints = "kpt_shape" in read_data(source.file) if source.file.suffix.lower() in YAML else False
    for number, path in enumerate(files, 1):
        images.append({"id": number, "file_name": path.relative_to(folder).as_posix()})
        label_file = _label_file(path)
        if not os.path.isfile(label_file):  # nor is one whose name is too long
            unlabelled.append(path)  # an image without objects
            continue
        try:
            height, width = header_size(path)
        except DataError:  # the image is left out, and its boxes with it
            height, width = 1, 1
        images[-1] |= {"height": height, "width": width}
        for row in _rows(label_file, keypoints):
            place = f"{label_file}:{row.line}"
            problem = row.problem or _unknown(row, names)
            if problem is not None:
                skipped.append(f"{place}: {problem}")
                continue
            x, y, box_width, box_height = row.box
            annotations.append(
                {
                    "id": place,
                    "image_id": number,
                    "category_id": row.label + 1,
                    "bbox": [x * width, y * height, box_width * width, box_height * height],
                    "iscrowd": 0,
                }
            )
    if len(unlabelled) == len(files):
        raise DataError(
            f"{source.file}: none of the {len(files)} images has a label file, such as "
            f"{_label_file(files[0])}; put labels/ beside images/, with the same names"
        )
    unread = list(_unread(source.folders, files))
    for stray, where in unread:
        missing = f"there is no image {stray.stem}.* for it in {where}; add it, or remove the file"
        other = f"{stray.stem}.txt is read instead, in another case; remove one of the two"
        skipped.append(f"{stray}: {other if where is None else missing}")
    notes = []
    if orphans := [stray for stray, where in unread if where is not None]:
        notes.append(f"{len(orphans)} label files have no image, first {orphans[0]}")
    if unlabelled:
        notes.append(
            f"{len(unlabelled)} of {len(files)} images have no label file and count as empty, first "
            f"{unlabelled[0]}"
        )
    categories = [{"id": number + 1, "name": name} for number, name in sorted(names.items())]
    return {
        "images": images,
        "annotations": annotations,
        "categories": categories,
        "skipped": skipped,
        "notes": notes,
        "folders": (folder,),
    }


def _folder_of(file: Path, images: Sequence[Path]) -> Path:
    """The folder that the images' names are relative to: the data set's, or all that they have in common."""
    place = Path(os.path.abspath(file)).parent
    candidates = (place, place.parent)
    common = Path(os.path.commonpath([path.parent for path in images]))
    return next((folder for folder in candidates if common.is_relative_to(folder)), common)


def label_files(source: Source) -> Iterator[Path]:
    """What a split is read from: the label file of each image, or the image where that does not exist."""
    for place in source.folders:
        for image in filter(os.path.isfile, _listed(place)):
            yield labels if os.path.isfile(labels := _label_file(image)) else image


# images and labels


def _listed(place: Path) -> list[Path]:
    """The images in a folder and its folders, or of a text file with one path a line, sorted.

    Raises:
        DataError: it is neither, such as a single image.
    """
    place = Path(os.path.abspath(place))
    if place.is_dir():
        return _images_in(place)
    if (problem := _no_list(place)) is not None:
        raise DataError(
            f"{place} is neither a folder of images nor a list of them, one path a line ({problem}); fix "
            "the path in the YAML file"
        )
    return [_of_list(place, plain_path(text)) for text in sorted(read_lines(place))]


def _no_list(place: Path) -> str | None:
    """Why a file is no list of images."""
    if place.suffix.lower() in Image.registered_extensions():
        return "it is an image"
    try:
        if place.exists() and not place.is_file():
            return "it is a device or pipe"
        with place.open("rb") as file:
            data = file.read(2**16)
            if b"\0" not in data:
                data += file.read()
    except OSError as error:
        raise DataError(f"cannot read {place}: {error.strerror}; check --data (YAML: data)") from error
    if b"\0" in data:
        return "it is no UTF-8 text"
    try:
        lines = data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError:
        return "it is no UTF-8 text"
    for number, line in enumerate(lines, 1):
        parts = plain_path(line).encode().split(b"/")
        if len(line) > LONGEST_LINE or max(map(len, parts)) > LONGEST_NAME:
            return f"line {number} is too long for a path, with {len(line)} characters"
    return None


def _of_list(place: Path, text: str) -> Path:
    """An image of a list: relative to it, to the folder above, or the end of another machine's path."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    candidates = [place.parent / text]
    for base in (place.parent, place.parent.parent):
        candidates += [base.joinpath(*parts[first:]) for first in range(len(parts))]
    return Path(os.path.normpath(next((path for path in candidates if os.path.isfile(path)), candidates[0])))


def _images_in(folder: Path) -> list[Path]:
    suffixes = Image.registered_extensions()
    return sorted(path for path in folder.rglob("*.*") if path.suffix.lower() in suffixes and path.is_file())


def _label_file(image: Path) -> Path:
    """The last folder `images` becomes `labels`; without one, the file beside the image."""
    parts = list(image.parent.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return in_any_case(Path(*parts, f"{image.stem}.txt"))


def _unread(places: Iterable[Path], images: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Label files that belong to no image, each with the folder that its image would be in.

    That is ``None`` where the image is there, and has another label file, such as a.txt beside a.TXT.

    Images of other splits in the same folders count. Other text files, such as of names, are no label files.
    """
    folders: dict[Path, set[Path]] = {}  # of images, by that of their label files
    for image in images:
        folders.setdefault(_label_file(image).parent, set()).add(image.parent)
    for place in map(Path, map(os.path.abspath, places)):
        labels = _label_file(place / "x.png").parent
        if place.is_dir() and labels != place and labels.is_dir():
            for folder in (labels, *(path for path in labels.rglob("*") if path.is_dir())):
                folders.setdefault(folder, set()).add(place / folder.relative_to(labels))
    expected = {_label_file(image) for image in images}
    suffixes = Image.registered_extensions()
    for folder, of_images in sorted(folders.items()):
        if not folder.is_dir():
            continue
        stems = {
            path.stem
            for place in of_images
            for path in (place.iterdir() if place.is_dir() else ())
            if path.suffix.lower() in suffixes
        }
        for file in files_in(folder, ".txt"):
            if file in expected or not _holds_boxes(file):
                continue
            if in_any_case(file.with_suffix(".txt")) in expected:
                yield file, None
            elif file.stem not in stems:
                yield file, min(of_images)


def _holds_boxes(file: Path) -> bool:
    lines = read_lines(file)
    return not lines or any(_row(1, tuple(line.split()[:5])).problem is None for line in lines)


class _Row(NamedTuple):
    """A line of a label file: its class, and its box as x, y of the corner, width and height in fractions."""

    line: int
    label: int
    box: tuple[float, float, float, float]
    problem: str | None


def _rows(file: Path, keypoints: bool) -> Iterable[_Row]:
    first: dict[tuple[str, ...], int] = {}
    for number, line in enumerate(read_lines(file), 1):
        words = tuple(line.split())
        if words in first:
            yield _Row(number, 0, (0, 0, 0, 0), f"it repeats line {first[words]}")
            continue
        first[words] = number
        yield _row(number, words[:5] if keypoints else words)


def _row(number: int, words: tuple[str, ...]) -> _Row:
    """A class with x and y of the center, width and height, or with the corners of a polygon."""

    def bad(problem: str) -> _Row:
        return _Row(number, 0, (0, 0, 0, 0), problem)

    try:
        values = [float(word) for word in words]
    except ValueError:
        return bad(f"{' '.join(words):.60} are not numbers")
    if len(values) != 5 and (len(values) < 7 or len(values) % 2 == 0):
        return bad(f"it has {len(values)} numbers, not a class with a box (5) or a polygon (7, 9, …)")
    if not all(map(math.isfinite, values)) or values[0] != int(values[0]):
        return bad(f"{' '.join(words):.60} are not a class and finite coordinates")
    if min(values[1:]) < -EDGE or max(values[1:]) > 1 + EDGE:
        return bad(f"{' '.join(words):.60} has coordinates that are not fractions of the image, from 0 to 1")
    if len(values) == 5:
        label, x, y, width, height = values
        return _Row(number, int(label), (x - width / 2, y - height / 2, width, height), None)
    xs, ys = values[1::2], values[2::2]
    return _Row(number, int(values[0]), (min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)), None)


def _unknown(row: _Row, names: Mapping[int, str]) -> str | None:
    return (
        None if row.label in names else f"its class {row.label} has no name; there are {len(names)}, from 0"
    )
