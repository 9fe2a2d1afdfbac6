"""Images of YOLO data, of a folder or a list, and the label file of each."""

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from PIL import Image

from autoprune.errors import DataError
from autoprune.layouts.image_folder import folders_below
from autoprune.layouts.source import files_in, in_any_case
from autoprune.layouts.text_files import read_lines
from autoprune.layouts.yolo_labels import holds_boxes
from autoprune.layouts.yolo_yaml import plain_path

LONGEST_LINE, LONGEST_NAME = 2048, 255
"""Of a path in a list of images, in characters, and of a folder or file in it, in bytes, as systems allow."""


def listed(place: Path) -> list[Path]:
    """The images in a folder and its folders, or of a text file with one path a line, sorted.

    Raises:
        DataError: it is neither, such as a single image.
    """
    place = Path(os.path.abspath(place))
    if place.is_dir():
        return images_in(place)
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


def images_in(folder: Path) -> list[Path]:
    """The images in a folder and all in it, over links too and without hidden folders, sorted."""
    suffixes = Image.registered_extensions()
    inside = (path for place in folders_below(folder) for path in place.iterdir())
    return sorted(path for path in inside if path.suffix.lower() in suffixes and path.is_file())


def label_file(image: Path) -> Path:
    """The last folder `images` becomes `labels`; without one, the file beside the image."""
    parts = list(image.parent.parts)
    for index in range(len(parts) - 1, -1, -1):
        if parts[index] == "images":
            parts[index] = "labels"
            break
    return in_any_case(Path(*parts, f"{image.stem}.txt"))


def unread(places: Iterable[Path], images: Sequence[Path]) -> Iterator[tuple[Path, Path | None]]:
    """Label files that belong to no image, each with the folder that its image would be in.

    That is ``None`` where the image is there, and has another label file, such as a.txt beside a.TXT.

    Images of other splits in the same folders count. Other text files, such as of names, are no label files.
    """
    folders: dict[Path, set[Path]] = {}  # of images, by that of their label files
    for image in images:
        folders.setdefault(label_file(image).parent, set()).add(image.parent)
    for place in map(Path, map(os.path.abspath, places)):
        labels = label_file(place / "x.png").parent
        if place.is_dir() and labels != place and labels.is_dir():
            for folder in folders_below(labels):
                folders.setdefault(folder, set()).add(place / folder.relative_to(labels))
    expected = {label_file(image) for image in images}
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
            if file in expected or not holds_boxes(file):
                continue
            if in_any_case(file.with_suffix(".txt")) in expected:
                yield file, None
            elif file.stem not in stems:
                yield file, min(of_images)
