"""Finds and reads YOLO data: a YAML file or list of names, images, and a text file of boxes for each."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import DataError
from autoprune.files import NO_FILE, what_is_no_file
from autoprune.images.decode import header_size
from autoprune.images.locate import missing_image
from autoprune.layouts.source import UNDIVIDED, Content, Layout, Source, each_once, in_any_case, split_of
from autoprune.layouts.yolo_images import images_in, label_file, listed, unread
from autoprune.layouts.yolo_labels import LabelReader
from autoprune.layouts.yolo_yaml import YAML, is_data, read_data, read_names, yaml_layout

NAME_FILES = ("classes.txt", "obj.names", "labels/classes.txt")
"""Where the names of the classes are without a YAML file, one a line."""


def find_yolo(folder: Path) -> list[Layout]:
    """The readings of a folder as YOLO: one for each YAML file, else one where a text file has the names."""
    files = sorted(path for path in folder.iterdir() if path.suffix.lower() in YAML and path.is_file())
    if layouts := [yaml_layout(file) for file in files if is_data(file)]:
        return layouts
    named = (in_any_case(folder / name) for name in NAME_FILES)
    names = next((file for file in named if file.is_file()), None)
    if names is None:
        return []
    inner = [
        (split, path)
        for place in (folder / "images", folder)
        for path in (sorted(place.iterdir()) if place.is_dir() else ())
        if path.is_dir() and (split := split_of(path.name))
    ]
    if len({split for split, _ in inner}) < len(inner):  # folders without images may have such names
        inner = [(split, path) for split, path in inner if images_in(path)]
    divided = each_once(((split, str(path), Source(names, (path,), "yolo")) for split, path in inner), folder)
    if not divided and not any(os.path.isfile(label_file(path)) for path in images_in(folder)):
        return []
    return [Layout("YOLO", names, divided or {UNDIVIDED: Source(names, (folder,), "yolo")})]


def read_yolo(source: Source) -> Content:
    """The images of a split and their boxes, in upright pixels.

    Raises:
        DataError: there are no images, none of them has a label file, the names are missing, or the boxes or
            classes are written in another way than YOLO's.
    """
    names = read_names(source.file)
    files = list(dict.fromkeys(path for place in source.folders for path in listed(place)))
    if not files:
        raise DataError(
            f"{source.file}: there are no images in {', '.join(map(str, source.folders))}; add them"
        )
    folder = _folder_of(source.file, files)
    keypoints = "kpt_shape" in read_data(source.file) if source.file.suffix.lower() in YAML else False
    reader = LabelReader(source.file, names, keypoints)
    images, unlabelled, missing = [], [], 0
    sharing: dict[Path, list[Path]] = {}
    for number, path in enumerate(files, 1):
        record: dict[str, Any] = {"id": number, "file_name": path.relative_to(folder).as_posix()}
        if not os.path.isfile(path):  # of a list
            reader.skipped.append(f"image {record['file_name']}: {missing_image([path])}")
            missing += 1
            continue
        place = label_file(path)
        problem = what_is_no_file(place)
        if problem == NO_FILE:  # so is one whose name is too long
            unlabelled.append(path)  # an image without objects
            images.append(record)
            continue
        try:
            height, width = header_size(path)
        except DataError:  # the image is left out, and its boxes with it
            height, width = 1, 1
        if problem is None:
            problem = reader.read(place, number, (height, width))
        if problem is not None:  # it is not known which objects the image has
            reader.skipped.append(f"image {path}: its label file {place} can't be read: {problem}")
            continue
        images.append(record | {"height": height, "width": width})
        sharing.setdefault(place, []).append(path)
    if unlabelled and len(unlabelled) + missing == len(files):
        raise DataError(
            f"{source.file}: none of the {len(unlabelled)} images has a label file, such as "
            f"{label_file(unlabelled[0])}; put labels/ beside images/, with the same names"
        )
    reader.refuse()
    unread_files = list(unread(source.folders, files))
    for stray, where in unread_files:
        lost = f"there is no image {stray.stem}.* for it in {where}; add it, or remove the file"
        other = f"{stray.stem}.txt is read instead, in another case; remove one of the two"
        reader.skipped.append(f"{stray}: {other if where is None else lost}")
    notes = []
    if shared := [pair for pair in sharing.items() if len(pair[1]) > 1]:
        place, (one, another, *_) = shared[0]
        notes.append(
            f"{len(shared)} label files are read for several images each, first {place} for {one.name} and "
            f"{another.name}"
        )
    if orphans := [stray for stray, where in unread_files if where is not None]:
        notes.append(f"{len(orphans)} label files have no image, first {orphans[0]}")
    if unlabelled:
        present = len(files) - missing
        notes.append(
            f"{len(unlabelled)} of {present} images have no label file and count as empty, first "
            f"{unlabelled[0]}"
        )
    return {
        "images": images,
        "annotations": reader.annotations,
        "categories": [{"id": number + 1, "name": name} for number, name in sorted(names.items())],
        "skipped": reader.skipped,
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
        for image in filter(os.path.isfile, listed(place)):
            yield labels if os.path.isfile(labels := label_file(image)) else image
