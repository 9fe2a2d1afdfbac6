"""Finds and reads YOLO data: a YAML file of splits and names, images, and one text file of boxes for each."""

import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from autoprune.errors import ConfigError, DataError
from autoprune.files import read_yaml
from autoprune.images.decode import header_size
from autoprune.layouts.source import UNDIVIDED, Content, Layout, Source, read_lines, split_of

NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
"""Where the names of the classes are without a YAML file, one a line."""
YAML = (".yaml", ".yml")
EDGE = 0.01
"""How far a coordinate may lie beyond the image, in fractions of it, as Ultralytics allows."""


def find_yolo(folder: Path) -> list[Layout]:
    """The readings of a folder as YOLO: one for each YAML file, else one where a text file has the names."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in YAML and path.is_file())
    if layouts := [yaml_layout(file) for file in files if _is_data(file)]:
        return layouts
    names = next((folder / name for name in NAME_FILES if (folder / name).is_file()), None)
    if names is None:
        return []
    divided = {
        split: Source(names, (path,), "yolo")
        for place in (folder / "images", folder)
        for path in (sorted(place.iterdir()) if place.is_dir() else ())
        if path.is_dir() and (split := split_of(path.name))
    }
    if not divided and not any(_label_file(path).is_file() for path in _images_in(folder)):
        return []
    return [Layout("YOLO", names, divided or {UNDIVIDED: Source(names, (folder,), "yolo")})]


def yaml_layout(file: Path) -> Layout:
    """The splits of a YAML file, whose paths are taken as Ultralytics takes them.

    Raises:
        DataError: it names none, or a path that does not exist.
    """
    content = _read(file)
    root = _root(file, content)
    splits: dict[str, Source] = {}
    for key, value in content.items():
        split = split_of(str(key))
        if split is None or not value:
            continue
        paths = [str(path) for path in value] if isinstance(value, list) else [str(value)]
        splits[split] = Source(file, tuple(_resolve(root, path, file, str(key)) for path in paths), "yolo")
    if not splits:
        raise DataError(f"{file} has none of the keys train, val and test; add them, with folders of images")
    return Layout("YOLO", file, splits)


def read_yolo(source: Source) -> Content:
    """The images of a split and their boxes, in upright pixels.

    Raises:
        DataError: there are no images, none of them has a label file, or the names are missing.
    """
    names = _names(source.file)
    images, annotations, skipped, labels = [], [], [], 0
    files = list(dict.fromkeys(path for place in source.folders for path in _listed(place)))
    if not files:
        raise DataError(
            f"{source.file}: there are no images in {', '.join(map(str, source.folders))}; add them"
        )
    folder = _folder_of(source.file, files)
    keypoints = "kpt_shape" in _read(source.file) if source.file.suffix.lower() in YAML else False
    for number, path in enumerate(files, 1):
        images.append({"id": number, "file_name": path.relative_to(folder).as_posix()})
        label_file = _label_file(path)
        if not label_file.is_file():
            continue  # an image without objects
        labels += 1
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
    if not labels:
        raise DataError(
            f"{source.file}: none of the {len(files)} images has a label file, such as "
            f"{_label_file(files[0])}; put labels/ beside images/, with the same names"
        )
    categories = [{"id": number + 1, "name": name} for number, name in sorted(names.items())]
    return {
        "images": images,
        "annotations": annotations,
        "categories": categories,
        "skipped": skipped,
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
        for image in filter(Path.is_file, _listed(place)):
            yield labels if (labels := _label_file(image)).is_file() else image


# the YAML file


def _read(file: Path) -> dict[str, Any]:
    content = read_yaml(file)
    if not isinstance(content, dict):
        raise DataError(
            f"{file} is not a YAML file of a data set: it has no keys train, val and names; fix it"
        )
    return content


def _is_data(file: Path) -> bool:
    """Whether a YAML file is one of YOLO data, and no settings of something else.

    Raises:
        ConfigError: it has YOLO's usual name, and is not YAML.
    """
    try:
        content = read_yaml(file)
    except ConfigError:
        if file.name == "data.yaml":
            raise
        return False
    keys = {*content} if isinstance(content, dict) else set()
    return bool({"names", "nc"} & keys or file.name == "data.yaml") and bool({"train", "val"} & keys)


def _root(file: Path, content: Mapping[str, Any]) -> Path:
    """The folder that paths are relative to: `path`, or the file's own where there is no such folder."""
    given = Path(os.path.expanduser(str(content.get("path") or "")))
    candidates = (file.parent / given, file.parent / "datasets" / given, file.parent.parent / given, given)
    return next((path for path in candidates if path.is_dir()), file.parent)


def _resolve(root: Path, text: str, file: Path, key: str) -> Path:
    """A folder of images or a text file of their paths.

    Raises:
        DataError: it does not exist.
    """
    text = os.path.expanduser(text.replace("\\", "/"))
    parts = [part for part in text.split("/") if part not in ("", ".", "..")]
    candidates = [root / text, file.parent / text]
    if text.startswith(("../", "/")):  # `../train/images` of Roboflow; paths of another machine
        own = [place for place, part in enumerate(parts) if split_of(part)]  # no other split's images
        for base in (root, file.parent):
            candidates += [
                base.joinpath(*parts[first:]) for first in range((own or [len(parts) - 1])[-1] + 1)
            ]
    path = next((path for path in candidates if path.exists()), None)
    if path is None:
        raise DataError(
            f"{file}: `{key}: {text}` does not exist below {root}; fix the path, or `path`, there"
        )
    return Path(os.path.normpath(path))


def _names(file: Path) -> dict[int, str]:
    """The names of the classes, by their number."""
    if file.suffix.lower() not in YAML:
        return dict(enumerate(read_lines(file)))
    content = _read(file)
    names: Any = content.get("names")
    count = content.get("nc")
    if names is None and type(count) is int:
        return {number: f"class_{number}" for number in range(count)}
    try:
        known = {
            int(key): str(name)
            for key, name in (names.items() if isinstance(names, dict) else enumerate(names))
        }
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{file}: `names` must be a list, or `number: name`, and is {names!r:.60}; fix it"
        ) from error
    if not known or (type(count) is int and count != len(known)):
        raise DataError(f"{file}: `names` has {len(known)} names, and `nc` is {count}; make them agree")
    return known


# images and labels


def _listed(place: Path) -> list[Path]:
    """The images in a folder and its folders, or of a text file with one path a line, sorted."""
    place = Path(os.path.abspath(place))
    if place.is_dir():
        return _images_in(place)
    return [_of_list(place, text.replace("\\", "/")) for text in sorted(read_lines(place))]


def _of_list(place: Path, text: str) -> Path:
    """An image of a list: relative to it, to the folder above, or the end of another machine's path."""
    parts = [part for part in text.split("/") if part not in ("", ".")]
    candidates = [place.parent / text]
    for base in (place.parent, place.parent.parent):
        candidates += [base.joinpath(*parts[first:]) for first in range(len(parts))]
    return Path(os.path.normpath(next((path for path in candidates if path.is_file()), candidates[0])))


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
    return Path(*parts, f"{image.stem}.txt")


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
