"""Finds COCO JSON files in the layouts of COCO itself, Roboflow, CVAT, Label Studio and FiftyOne."""

import filecmp
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

from PIL import Image

from autoprune.errors import DataError
from autoprune.layouts.image_folder import folders_below
from autoprune.layouts.source import UNDIVIDED, Layout, Source, evidence_of, files_in, in_any_case, split_of

YEAR = re.compile(r"(.+?)(2017|2014)")
NAMES = {
    "_annotations.coco.json": "Roboflow COCO",
    "result.json": "Label Studio COCO",
    "labels.json": "FiftyOne COCO",
}
"""The file that a tool writes into the folder of a split, or of the whole set."""

OF_ANNOTATIONS = ("annotation", "annotations", "label", "labels")
"""Folders for annotation files alone, in lower case: images are beside them."""


def find_coco(folder: Path) -> list[Layout]:
    """The readings of a folder as COCO JSON.

    Raises:
        DataError: two files are for the same split.
    """
    own = [_by_split(folder, place) for place in (folder / "annotations", folder)]
    return [layout for layout in (*own, *_by_folder(folder)) if layout is not None]


def single_file(file: Path) -> Layout:
    """A COCO JSON file that is given itself."""
    return Layout("COCO JSON file", file, {UNDIVIDED: _source(file)})


def find_single(folder: Path, anywhere: bool = False) -> list[Layout]:
    """The reading of a folder without a known layout by its one COCO JSON file of any name, beside images.

    Args:
        folder: holds it, or has a folder of annotations that does.
        anywhere: its images may be in any folder below.

    Raises:
        DataError: several files are in COCO format.
    """
    places = [folder, folder / "annotations"]
    if anywhere:
        inner = [path for path in sorted(folder.iterdir()) if path.is_dir()]
        places = [folder, *(path for path in inner if path.name.casefold() in OF_ANNOTATIONS)]
    files = [
        file
        for place in places
        for file in files_in(place, ".json")
        if _is_coco(file, file.stat().st_mtime_ns)
    ]
    beside = {place for file in files for place in _beside(file.parent)}
    if anywhere and files:
        beside.update(folders_below(folder))
    if not any(place.name == "images" or _holds_images(place) for place in beside):
        return []
    if len(files) > 1:
        raise DataError(
            f"{folder} has several COCO files, {', '.join(map(str, files[:5]))}"
            f"{', …' if len(files) > 5 else ''}; give one, as in --data {files[0]} (YAML: data)"
        )
    return [single_file(files[0])]


def _holds_images(folder: Path) -> bool:
    suffixes = Image.registered_extensions()
    return any(path.suffix.lower() in suffixes for path in folder.iterdir())


@lru_cache(maxsize=64)  # a run looks at the layout several times
def _is_coco(file: Path, _stamp: int) -> bool:
    try:
        content = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return False
    parts = ("images", "annotations", "categories")
    return isinstance(content, dict) and all(isinstance(content.get(part), list) for part in parts)


def _by_split(folder: Path, place: Path) -> Layout | None:
    """Files named after their split: ``instances_train.json``, ``train.json``."""
    files: dict[str, dict[str, Path]] = {}
    for file in files_in(place, ".json"):
        name = file.stem.removeprefix("instances_")
        plain = split_of(name)
        if plain is None and not file.stem.startswith("instances_"):
            continue
        year = YEAR.fullmatch(name)
        base, suffix = (year[1], year[2]) if year else (name, "")
        key = split_of(base) or base
        group = files.setdefault(key, {})
        if suffix in group:
            raise DataError(f"{folder}: {group[suffix]} and {file} are both for {key}; move one of them away")
        group[suffix] = file
    if not files:
        return None
    splits = {}
    for key, group in files.items():
        file = _of_one_year(folder, key, group)
        images = _image_folders(folder, file.stem.removeprefix("instances_"))
        splits[key] = Source(file, images if place != folder else (*images, folder), roots=(folder,))
    first = evidence_of(splits).file
    if len(splits) == 1 and next(iter(splits)) not in ("train", "val", "test"):
        name = "CVAT COCO" if first.stem == "instances_default" else "COCO JSON file"
        return Layout(name, first, {UNDIVIDED: next(iter(splits.values()))})
    return Layout("COCO", first, splits)


def _of_one_year(folder: Path, split: str, group: Mapping[str, Path]) -> Path:
    """The file of a split among those that differ in the year after its name.

    Of two years it is the one whose images are there. A copy under another name is no second file.

    Raises:
        DataError: several are left; it names two.
    """
    files = [group[suffix] for suffix in ("", "2017", "2014") if suffix in group]
    first, *others = files if "" in group else [file for file in files if _own_images(folder, file)] or files
    for other in others:
        if not filecmp.cmp(first, other, shallow=False):
            raise DataError(f"{folder}: {first} and {other} are both for {split}; move one of them away")
    return first


def _own_images(folder: Path, file: Path) -> bool:
    """Whether there is a folder of images that is named after a file of annotations, its year included."""
    return any(path.is_dir() for path in _named_after(folder, file.stem.removeprefix("instances_")))


def _named_after(folder: Path, name: str) -> list[Path]:
    return [folder / "images" / name, folder / name]


def _image_folders(folder: Path, name: str) -> tuple[Path, ...]:
    candidates = [*_named_after(folder, name), folder / "images"]
    if (year := YEAR.fullmatch(name)) is not None:
        candidates.insert(2, folder / "images" / year[1])
    return tuple(path for path in candidates if path.is_dir())


def _by_folder(folder: Path) -> list[Layout]:
    """A file of `NAMES`, in the folder itself or in one folder for each split."""
    by_layout: dict[str, dict[str, Source]] = {}
    for place in sorted(path for path in folder.iterdir() if path.is_dir() and split_of(path.name)):
        for file_name, layout in NAMES.items():
            if not (file := in_any_case(place / file_name)).is_file():
                continue
            split, splits = str(split_of(place.name)), by_layout.setdefault(layout, {})
            if split in splits:
                raise DataError(
                    f"{folder}: {splits[split].file} and {file} are both for {split}; move one of them away"
                )
            splits[split] = _source(file, folder)
    layouts = [Layout(name, evidence_of(splits).file, splits) for name, splits in by_layout.items()]
    layouts += [
        Layout(layout, file, {UNDIVIDED: _source(file)})
        for name, layout in NAMES.items()
        if (file := in_any_case(folder / name)).is_file()
    ]
    return layouts


def _source(file: Path, folder: Path | None = None) -> Source:
    """A JSON file with its images around it, or else somewhere in the folder of the data set."""
    place = file.parent
    if folder is None and place.name.casefold() in OF_ANNOTATIONS:
        folder = place.parent
    return Source(file, _beside(place), roots=(place,) if folder is None else (place, folder))


def _beside(folder: Path) -> tuple[Path, ...]:
    """Where the images of a JSON file in ``folder`` may be."""
    places = [folder / "images", folder / "data", folder]
    if folder.name == "annotations":
        places = [folder.parent / "images", folder.parent, folder]
    return tuple(place for place in places if place.is_dir())
