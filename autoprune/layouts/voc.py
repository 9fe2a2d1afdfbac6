"""Finds and reads Pascal VOC data: one XML file for each image, and lists of their names for the splits."""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from xml.parsers import expat

from PIL import Image

from autoprune.errors import DataError
from autoprune.images.decode import threads
from autoprune.images.locate import find_image
from autoprune.layouts.source import (
    UNDIVIDED,
    Content,
    Layout,
    Source,
    each_once,
    evidence_of,
    files_in,
    in_any_case,
    split_of,
)
from autoprune.layouts.text_files import numbered, read_lines
from autoprune.layouts.voc_xml import Record, annotations_of, parse, parse_xml
from autoprune.records.convention import CORNERS, Convention
from autoprune.records.fields import shown

NAME_FILES = ("labelmap.txt", "classes.txt")
"""Where the order of the classes may be; else it is that of the alphabet, as in VOC's own list."""
SHOWN = 3
"""Names of classes that a message shows."""
PROBED = 50
"""XML files of a folder that are looked at to tell whether they are of VOC."""


def find_voc(folder: Path) -> list[Layout]:
    """The readings of a folder as Pascal VOC: VOC's own folders, folders of splits, or XML beside images."""
    xml = folder / "Annotations"
    if files_in(xml, ".xml"):
        images = tuple(path for path in (folder / "JPEGImages", folder / "images", xml) if path.is_dir())
        listed = [
            (split, str(listing), Source(xml, images, "voc", listing))
            for listing in files_in(folder / "ImageSets/Main", ".txt")
            if (split := split_of(listing.stem))
        ]
        lists = each_once(listed, folder)
        both = in_any_case(folder / "ImageSets/Main/trainval.txt")
        if "train" not in lists and both.is_file():
            lists["train"] = Source(xml, images, "voc", both)
        return [Layout("Pascal VOC", xml, lists or {UNDIVIDED: Source(xml, images, "voc")})]
    inner = [
        (split, str(path), Source(path, (path,), "voc"))
        for path in sorted(folder.iterdir())
        if path.is_dir() and (split := split_of(path.name)) and _holds_voc(path)
    ]
    if splits := each_once(inner, folder):
        return [Layout("Pascal VOC", evidence_of(splits).file, splits)]
    if _holds_voc(folder):
        beside = tuple(path for path in (folder, folder / "images") if path.is_dir())
        return [Layout("Pascal VOC", folder, {UNDIVIDED: Source(folder, beside, "voc")})]
    return []


def read_voc(source: Source) -> Content:
    """The images of a split and their boxes.

    VOC counts pixels from 1 and includes the last one: a box from 1 to 500 covers 500 columns. Where
    any file of the set has a 0 as the first corner, its tool counts from 0: corners are taken as they are.
    A box marked `difficult` is a crowd: it counts for nothing in the evaluation, and is left out of training.

    Raises:
        DataError: a list names no XML file, or there are no objects to take classes from.
    """
    whole = _parse_all(source.whole or (source,))
    covered = any(split.file == source.file for split in source.whole or (source,))
    parsed = whole if covered else {**whole, **_parse_all([source])}
    own = _chosen(source)
    skipped: list[str] = []
    annotations: list[dict[str, Any]] = []
    images: list[dict[str, Any]] = []
    records = [record for record in whole.values() if not isinstance(record, str)]
    if (first := next(iter(parsed.values()), None)) and all(
        isinstance(each, str) for each in parsed.values()
    ):
        raise DataError(f"{source.file}: none of its {len(parsed)} XML files can be read ({first})")
    corners = [thing.box[:2] for record in records for thing in record.things if thing.box]
    from_zero = any(0 <= corner < 1 for pair in corners for corner in pair)  # below 0, a box is not clipped
    offset = 0 if from_zero else 1
    _check_convention(source, parsed)
    every = [record for record in parsed.values() if not isinstance(record, str)]
    names, lacking = _class_names(source, records, every)
    numbers = {name: number for number, name in enumerate(names, 1)}
    for number, file in enumerate(own, 1):
        record = parsed.get(file, f"there is no file {file}; add it, or remove its name from the list")
        if isinstance(record, str):
            skipped.append(f"image {file.stem}: {record}")
            continue
        entry: dict[str, Any] = {
            "id": number,
            "file_name": _image_name(file, record.file_name, source.folders),
        }
        if record.size is not None:
            entry |= {"height": record.size[0], "width": record.size[1]}
        images.append(entry)
        for thing in annotations_of(file, record, number, numbers, offset):
            if isinstance(thing, str):
                skipped.append(thing)
            else:
                annotations.append(thing)
    notes = []
    if from_zero:
        notes.append("corners are taken as counted from 0, as some are 0, not from 1 as VOC's own are")
    if _name_file(source) is None:
        order = ", ".join(f"{number} {name}" for name, number in numbers.items())
        notes.append(
            f"classes in the order of the alphabet, as no labelmap.txt or classes.txt gives one: {order}"
        )
    if lacking:
        notes.append(f"classes that {_name_file(source)} lacks come last: {_first(lacking)}")
    if orphans := _without_image(parsed, source):
        notes.append(f"{len(orphans)} XML files have no image, first {orphans[0]}")
    if difficult := sum(thing["iscrowd"] for thing in annotations):
        notes.append(
            f"{difficult} boxes marked `difficult` are ignored: not trained on, and neither hit nor miss"
        )
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": number, "name": name} for name, number in numbers.items()],
        "skipped": skipped,
        "notes": notes,
    }


def _check_convention(source: Source, parsed: Mapping[Path, Record | str]) -> None:
    """Refuses corners that are written in another way; the sizes of images are those that the files give.

    Raises:
        DataError: names the first such object.
    """
    convention = Convention(CORNERS, ("bndbox looks", "Pascal VOC"))
    for file, record in parsed.items():
        if isinstance(record, str) or record.size is None:
            continue
        image = {"height": record.size[0], "width": record.size[1]}
        for place, thing in enumerate(record.things, 1):
            if thing.box is not None:
                convention.add(thing.box, image, f"{file}, object {place}")
    convention.refuse(source.file)


def label_files(source: Source) -> Iterator[Path]:
    """What a set is read from: every XML file, as the classes are those of all, and the lists."""
    for place in dict.fromkeys(split.file for split in (*source.whole, source)):
        yield from files_in(place, ".xml")
    yield from filter(None, (source.listing, _name_file(source)))


# lists and names


def _chosen(source: Source) -> list[Path]:
    """The XML files of a split; those that a list names may not exist."""
    if source.listing is None:
        return files_in(source.file, ".xml")
    files = []
    for text in read_lines(source.listing):
        if not (file := in_any_case(source.file / f"{text}.xml")).is_file():
            text = re.sub(r"\s+(-1|0|1)$", "", text)  # the lists of one class say whether the image shows it
            file = in_any_case(source.file / f"{text}.xml")
        files.append(file if file.is_file() else in_any_case(source.file / f"{Path(text).stem}.xml"))
    if not files:
        raise DataError(f"{source.listing} names no image; write one name a line, without a suffix")
    return list(dict.fromkeys(files))


def _class_names(
    source: Source, records: Sequence[Record], every: Sequence[Record]
) -> tuple[list[str], list[str]]:
    """The classes in the order of their numbers, and those of them that the list of names lacks.

    Args:
        source: the split.
        records: of the splits that are trained or validated on.
        every: these, and the split's own.

    Raises:
        DataError: there are none, or the list of names has others than the boxes.
    """
    used, used_anywhere = _used(records), _used(every)
    if not used_anywhere:
        raise DataError(f"{source.file}: no XML file has an object with a name; there is nothing to detect")
    unordered = list(dict.fromkeys((*used, *used_anywhere)))
    if (file := _name_file(source)) is None:
        return unordered, []
    listed = _listed_names(file)
    lacking = [name for name in unordered if name not in listed]
    unused = [name for name in listed if name not in used_anywhere]
    if lacking and unused:
        raise DataError(
            f"{file} lists {_first(unused)}, which no box has, and boxes have {_first(lacking)}, which it "
            "does not list; write the names of the boxes there, one a line"
        )
    return [*listed, *lacking], lacking


def _used(records: Sequence[Record]) -> list[str]:
    return sorted({thing.name for record in records for thing in record.things if thing.name})


def _first(names: Sequence[str]) -> str:
    return ", ".join(map(shown, names[:SHOWN])) + (", …" if names[SHOWN:] else "")


def _listed_names(file: Path) -> list[str]:
    """The names in a list: one a line, numbered or not, or with a color and more after colons."""
    lines = [line for line in read_lines(file) if not line.startswith("#")]
    if (by_number := numbered(lines)) is not None:
        names = [by_number[number] for number in sorted(by_number)]
    else:
        names = [line.split(":")[0].strip() for line in lines]
    return [name for name in dict.fromkeys(names) if name and name != "background"]


def _name_file(source: Source) -> Path | None:
    candidates = (
        in_any_case(place / name) for place in (source.file, source.file.parent) for name in NAME_FILES
    )
    return next((file for file in candidates if file.is_file()), None)


def _image_name(file: Path, listed: str, folders: Sequence[Path]) -> str:
    """The image of the same name as the XML file, as in VOC; where there is none, the `filename` in it."""
    suffixes = [Path(listed).suffix, ".jpg", ".jpeg", ".png", *sorted(Image.registered_extensions())]
    for suffix in dict.fromkeys(suffix for suffix in suffixes if suffix):
        for spelled in (suffix, suffix.upper()):
            if any((folder / (file.stem + spelled)).is_file() for folder in folders):
                return file.stem + spelled
    return listed or f"{file.stem}.jpg"


def _without_image(parsed: Mapping[Path, Record | str], source: Source) -> list[Path]:
    """The XML files in a split's folder that no image has the name of, nor the name that they give."""
    suffixes = Image.registered_extensions()
    stems = {
        path.stem for place in source.folders for path in place.iterdir() if path.suffix.lower() in suffixes
    }
    return [
        file
        for file, record in parsed.items()
        if file.parent == source.file
        and file.stem not in stems
        and not isinstance(record, str)
        and find_image(record.file_name or file.stem, source.folders)[0] is None
    ]


def _parse_all(splits: Sequence[Source]) -> dict[Path, Record | str]:
    files = [
        file for place in dict.fromkeys(split.file for split in splits) for file in files_in(place, ".xml")
    ]
    with ThreadPoolExecutor(threads()) as pool:
        return dict(zip(files, pool.map(parse, files), strict=True))


def _holds_voc(folder: Path) -> bool:
    """Whether an XML file of a folder is one of VOC, or all are broken and one has an image beside it."""
    files = files_in(folder, ".xml")[:PROBED]
    broken = []
    for file in files:
        try:
            root = parse_xml(file.read_bytes())
        except (OSError, ValueError, LookupError, expat.ExpatError):
            broken.append(file)
            continue
        if root.tag == "annotation" and (root.find("object") is not None or root.find("size") is not None):
            return True
    return broken == files and any((folder / _image_name(file, "", (folder,))).is_file() for file in files)
