"""Finds and reads Pascal VOC data: one XML file for each image, and lists of their names for the splits."""

import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from PIL import Image

from autoprune.errors import DataError
from autoprune.images.decode import threads
from autoprune.layouts.source import UNDIVIDED, Content, Layout, Source, evidence_of, read_lines, split_of

NAME_FILES = ("labelmap.txt", "classes.txt")
"""Where the order of the classes may be; else it is that of the alphabet, as in VOC's own list."""
CORNERS = ("xmin", "ymin", "xmax", "ymax")


def find_voc(folder: Path) -> list[Layout]:
    """The readings of a folder as Pascal VOC: VOC's own folders, folders of splits, or XML beside images."""
    xml = folder / "Annotations"
    if any(xml.glob("*.xml")):
        images = tuple(path for path in (folder / "JPEGImages", folder / "images", xml) if path.is_dir())
        lists = {
            split: Source(xml, images, "voc", listing)
            for listing in sorted((folder / "ImageSets/Main").glob("*.txt"))
            if (split := split_of(listing.stem))
        }
        both = folder / "ImageSets/Main/trainval.txt"
        if "train" not in lists and both.is_file():
            lists["train"] = Source(xml, images, "voc", both)
        return [Layout("Pascal VOC", xml, lists or {UNDIVIDED: Source(xml, images, "voc")})]
    splits = {
        split: Source(path, (path,), "voc")
        for path in sorted(folder.iterdir())
        if path.is_dir() and (split := split_of(path.name)) and _holds_voc(path)
    }
    if splits:
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
    skipped, annotations, images = [], [], []
    records = [record for record in whole.values() if not isinstance(record, str)]
    from_zero = any(
        thing.box[0] < 1 or thing.box[1] < 1 for record in records for thing in record.things if thing.box
    )
    offset = 0 if from_zero else 1
    every = [record for record in parsed.values() if not isinstance(record, str)]
    names = list(dict.fromkeys((*_class_names(source, records), *_class_names(source, every))))
    numbers = {name: number for number, name in enumerate(names, 1)}
    difficult = 0
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
        for place, thing in enumerate(record.things, 1):
            where = f"{file}, object {place}"
            if thing.box is None or thing.name not in numbers:
                skipped.append(f"{where}: it has no name, or no bndbox with four numbers")
                continue
            x1, y1, x2, y2 = thing.box
            difficult += thing.difficult
            annotations.append(
                {
                    "id": where,
                    "image_id": number,
                    "category_id": numbers[thing.name],
                    "bbox": [x1 - offset, y1 - offset, x2 - x1 + offset, y2 - y1 + offset],
                    "iscrowd": int(thing.difficult),
                }
            )
    notes = (
        ["corners are taken as counted from 0, as some are 0, not from 1 as VOC's own are"]
        if from_zero
        else []
    )
    if _name_file(source) is None:
        order = ", ".join(f"{number} {name}" for name, number in numbers.items())
        notes.append(
            f"classes in the order of the alphabet, as no labelmap.txt or classes.txt gives one: {order}"
        )
    if difficult:
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


def label_files(source: Source) -> Iterator[Path]:
    """What a set is read from: every XML file, as the classes are those of all, and the lists."""
    for place in dict.fromkeys(split.file for split in (*source.whole, source)):
        yield from sorted(place.glob("*.xml"))
    yield from filter(None, (source.listing, _name_file(source)))


# lists and names


def _chosen(source: Source) -> list[Path]:
    """The XML files of a split; those that a list names may not exist."""
    if source.listing is None:
        return sorted(source.file.glob("*.xml"))
    stems = []
    for text in read_lines(source.listing):
        if not (source.file / f"{text}.xml").is_file():
            text = re.sub(r"\s+(-1|0|1)$", "", text)  # the lists of one class say whether the image shows it
            text = text if (source.file / f"{text}.xml").is_file() else Path(text).stem
        stems.append(text)
    if not stems:
        raise DataError(f"{source.listing} names no image; write one name a line, without a suffix")
    return [source.file / f"{stem}.xml" for stem in dict.fromkeys(stems)]


def _class_names(source: Source, records: Sequence["_Record"]) -> list[str]:
    used = Counter(thing.name for record in records for thing in record.things if thing.name)
    if (file := _name_file(source)) is not None:
        lines = [line.split(":")[0].strip() for line in read_lines(file)]
        listed = [line for line in lines if line and not line.startswith("#") and line != "background"]
        return [*dict.fromkeys(listed), *sorted({*used} - {*listed})]
    if not used:
        raise DataError(f"{source.file}: no XML file has an object with a name; there is nothing to detect")
    return sorted(used)


def _name_file(source: Source) -> Path | None:
    candidates = (place / name for place in (source.file, source.file.parent) for name in NAME_FILES)
    return next((file for file in candidates if file.is_file()), None)


def _image_name(file: Path, listed: str, folders: Sequence[Path]) -> str:
    """The image of the same name as the XML file, as in VOC; where there is none, the `filename` in it."""
    suffixes = [Path(listed).suffix, ".jpg", ".jpeg", ".png", *sorted(Image.registered_extensions())]
    for suffix in dict.fromkeys(suffix for suffix in suffixes if suffix):
        for spelled in (suffix, suffix.upper()):
            if any((folder / (file.stem + spelled)).is_file() for folder in folders):
                return file.stem + spelled
    return listed or f"{file.stem}.jpg"


# one XML file


class _Thing(NamedTuple):
    """An object: its class, its corners (x1, y1, x2, y2) as written, and whether it is marked difficult."""

    name: str
    box: tuple[float, float, float, float] | None
    difficult: bool


class _Record(NamedTuple):
    """An XML file: the image's name and (height, width), where it gives them, and the objects."""

    file_name: str
    size: tuple[int, int] | None
    things: list[_Thing]


def _parse_all(splits: Sequence[Source]) -> dict[Path, "_Record | str"]:
    files = [
        file
        for place in dict.fromkeys(split.file for split in splits)
        for file in sorted(place.glob("*.xml"))
    ]
    with ThreadPoolExecutor(threads()) as pool:
        return dict(zip(files, pool.map(_parse, files), strict=True))


def _parse(file: Path) -> _Record | str:
    """What a file says, or what is wrong with it."""
    try:
        root = parse_xml(file.read_bytes())
    except (OSError, ValueError, LookupError, expat.ExpatError) as error:
        return f"{file} is not readable XML ({error}); fix it"
    things_of = root.findall("object")
    apart = len([*root.iter("bndbox")]) - sum(len([*element.iter("bndbox")]) for element in things_of)
    if apart:
        return f"{file} has bndbox elements, {apart} in all, that are in no object of its annotation; fix it"
    if twice := [place for place, element in enumerate(things_of, 1) if len(element.findall("bndbox")) > 1]:
        return f"{file}: object {twice[0]} has more than one bndbox; write an object for each"
    size = root.find("size")
    height, width = (_number(size, side) if size is not None else None for side in ("height", "width"))
    known = height is not None and width is not None and height >= 1 and width >= 1
    things = []
    for element in things_of:
        corners = element.find("bndbox")
        values = [None if corners is None else _number(corners, corner) for corner in CORNERS]
        x1, y1, x2, y2 = values
        box = None if x1 is None or y1 is None or x2 is None or y2 is None else (x1, y1, x2, y2)
        difficult = (element.findtext("difficult") or "0").strip().casefold() not in ("", "0", "false")
        things.append(_Thing((element.findtext("name") or "").strip(), box, difficult))
    name = (root.findtext("filename") or "").strip()
    return _Record(name, (int(height or 0), int(width or 0)) if known else None, things)


def parse_xml(data: bytes) -> ElementTree.Element:
    """Parses XML that declares no entities, which could expand to gigabytes or name other files.

    Names of elements are in lower case and without a prefix: `<Object>` and `<voc:object>` are `object`.

    Raises:
        ValueError: it declares one.
        ExpatError: it is not well formed.
    """
    builder = ElementTree.TreeBuilder()
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, fields: builder.start(_plain(name), fields)
    parser.EndElementHandler = lambda name: builder.end(_plain(name))
    parser.CharacterDataHandler = builder.data

    def refuse(*declaration: object) -> None:
        raise ValueError(f"it declares the entity {declaration[0]}")

    parser.EntityDeclHandler = refuse
    parser.Parse(data, True)
    return builder.close()


def _plain(name: str) -> str:
    return name.rpartition(":")[2].lower()


def _number(element: ElementTree.Element, name: str) -> float | None:
    try:
        value = float((element.findtext(name) or "").strip())
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def _holds_voc(folder: Path) -> bool:
    """Whether the first XML file of a folder is one of VOC."""
    file = next(iter(sorted(folder.glob("*.xml"))), None)
    if file is None:
        return False
    try:
        root = parse_xml(file.read_bytes())
    except (OSError, ValueError, LookupError, expat.ExpatError):
        return False
    return root.tag == "annotation" and (root.find("object") is not None or root.find("size") is not None)
