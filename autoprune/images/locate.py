"""Finds the file of each image record, and decides how all of them are to be seen: orientation and levels."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from autoprune.errors import DataError
from autoprune.files import NO_FILE, what_is_no_file
from autoprune.images.decode import Header, View, read_header, threads
from autoprune.images.file_names import readings
from autoprune.images.pixels import check_colors, measure_levels

Size = tuple[int, int]
Records = Sequence[Mapping[str, Any]]
Others = Callable[[], Iterable[tuple[Records, tuple[Path, ...]]]]
"""The records of all splits that are trained or validated on, with the folders of their images."""


class ImageFile(NamedTuple):
    """The file of an image record, its (height, width) in the pixels of its boxes, and how to see it."""

    path: Path
    size: Size
    view: View


@dataclass(frozen=True)
class Located:
    """The files of a split.

    Attributes:
        files: for each record its file, or what is wrong with it.
        notes: what was decided for the images together, one line each.
    """

    files: list[ImageFile | str]
    notes: list[str]


class _Open(NamedTuple):
    """A file that was found, and the size that its record gives, if any."""

    path: Path
    header: Header
    listed: Size | None


def locate(records: Records, folders: tuple[Path, ...], others: Others = tuple) -> Located:
    """Finds the files of image records, and reads their headers.

    An image whose EXIF entry turns or mirrors it is upright where the record's size is the upright one. It is
    as stored where the size is the stored one. Where the size tells neither, as for square images, those of
    the whole set that tell decide, and where none does it is upright, as annotation tools show it.

    Args:
        records: of `records.clean.ImageList`.
        folders: where images are looked for, in this order.
        others: see `Others`; asked only where the set as a whole decides.

    Raises:
        DataError: an image whose values tell the set's range can't be decoded, or 16-bit colors use fewer.
    """
    opened = _open_all(records, folders)
    turned = [entry for entry in opened if isinstance(entry, _Open) and entry.header.orientation > 1]
    stored = False
    if any(_says_stored(entry) is None for entry in turned):
        whole = [entry for other in others() for entry in _open_all(*other)] or opened
        votes = Counter(_says_stored(entry) for entry in whole if isinstance(entry, _Open))
        stored = votes[True] > votes[False]
    notes = _orientation_notes(turned, stored, len(records))
    levels, deep = None, [entry.path for entry in opened if isinstance(entry, _Open) and entry.header.deep]
    if deep:
        whole = [entry for other in others() for entry in _open_all(*other)]
        of_all = {entry.path for entry in whole if isinstance(entry, _Open) and entry.header.deep}
        levels = measure_levels(sorted(of_all or deep))
        low, high = (f"{value:.6g}" for value in levels)
        notes.append(
            f"grays of more than 8 bits in {len(deep)} of {len(records)} images: {low} is read as black and "
            f"{high} as white, from the values of the set"
        )
    if colors := {entry.path for entry in opened if isinstance(entry, _Open) and entry.header.deep_color}:
        whole = [entry for other in others() for entry in _open_all(*other)]
        of_all = {entry.path for entry in whole if isinstance(entry, _Open) and entry.header.deep_color}
        check_colors(sorted(of_all or colors))
        notes.append(f"colors of 16 bits in {len(colors)} of {len(records)} images: the upper 8 are read")
    files: list[ImageFile | str] = []
    for entry in opened:
        if isinstance(entry, str):
            files.append(entry)
            continue
        says = _says_stored(entry)
        as_stored = entry.header.orientation > 1 and (stored if says is None else says)
        view = View(as_stored, levels if entry.header.deep else None)
        size = entry.header.stored if as_stored else entry.header.size
        fits = entry.listed in (None, size)
        files.append(ImageFile(entry.path, size, view) if fits else _misfit(entry))
    return Located(files, notes)


def _orientation_notes(turned: Sequence[_Open], stored: bool, count: int) -> list[str]:
    says = [_says_stored(entry) for entry in turned]
    as_stored = sum(stored if says_stored is None else says_stored for says_stored in says)
    notes = []
    if upright := len(turned) - as_stored:
        notes.append(f"EXIF orientation applied to {upright} of {count} images: boxes are in upright pixels")
    if as_stored:
        notes.append(
            f"EXIF orientation not applied to {as_stored} of {count} images: by the annotations' sizes, "
            "boxes are in stored pixels"
        )
    return notes


def _says_stored(entry: _Open) -> bool | None:
    """Whether the record's size is that of the stored pixels, not the upright one; ``None``: can't tell."""
    header = entry.header
    if header.size == header.stored or entry.listed not in (header.size, header.stored):
        return None
    return entry.listed == header.stored


def _misfit(entry: _Open) -> str:
    (height, width), listed = entry.header.size, entry.listed or (0, 0)
    return f"it is {width}x{height} pixels, the annotations say {listed[1]}x{listed[0]}"


def _open_all(records: Records, folders: tuple[Path, ...]) -> list[_Open | str]:
    paths = find_images(records, folders)
    with ThreadPoolExecutor(threads()) as pool:
        claims: dict[Path, set[str]] = {}
        for record, (path, exact) in zip(records, paths, strict=True):
            if path is not None and not exact:
                claims.setdefault(path, set()).add(str(record["file_name"]))

        def open_one(record: Mapping[str, Any], path: Path | None) -> _Open | str:
            if path is None:
                return missing_image([folder / str(record["file_name"]) for folder in folders])
            if len(names := sorted(claims.get(path, ()))) > 1:
                return f"{path} could be {names[0]} or {names[1]}; put the images in such folders"
            try:
                return _Open(path, read_header(path), _listed_size(record))
            except DataError as error:
                return str(error)

        return list(pool.map(open_one, records, [path for path, _ in paths]))


def _listed_size(record: Mapping[str, Any]) -> Size | None:
    """Height and width of a record of `records.clean.ImageList`, which holds whole numbers or none."""
    return (record["height"], record["width"]) if {"height", "width"} <= record.keys() else None


def find_images(records: Records, folders: Sequence[Path]) -> list[tuple[Path | None, bool]]:
    """What `find_image` finds for each record."""
    with ThreadPoolExecutor(threads()) as pool:
        return list(pool.map(lambda record: find_image(str(record["file_name"]), folders), records))


def find_image(name: str, folders: Sequence[Path]) -> tuple[Path | None, bool]:
    """The file of an image by its name in the annotations, and whether it has that very name below a folder.

    Where no file has the name, its other `readings` are tried: the annotations may be of another machine.
    """
    for reading in readings(name):
        for folder in folders:
            if _is_file(folder / reading):
                return folder / reading, reading == name
    return None, False


def missing_image(places: Sequence[Path]) -> str:
    """What is wrong with an image of which no place holds a file, such as that one holds a pipe."""
    problems = [(place, what_is_no_file(place)) for place in places]
    wrong = [f"{place} is no image: {problem}" for place, problem in problems if problem != NO_FILE]
    return wrong[0] if wrong else f"there is no file {places[-1]}"


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False
