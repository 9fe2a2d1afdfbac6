"""Reads one XML file of Pascal VOC."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree
from xml.parsers import expat

from autoprune.records.fields import flag, number, whole

CORNERS = ("xmin", "ymin", "xmax", "ymax")


class Thing(NamedTuple):
    """An object: its class, its corners (x1, y1, x2, y2) as written, and whether it is marked difficult.

    ``None`` stands for corners that are not four numbers, and for a mark that is neither yes nor no.
    """

    name: str
    box: tuple[float, float, float, float] | None
    difficult: bool | None


class Record(NamedTuple):
    """An XML file: the image's name and (height, width), where it gives them, and the objects."""

    file_name: str
    size: tuple[int, int] | None
    things: list[Thing]


def parse(file: Path) -> Record | str:
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
    for side, pixels in (("height", height), ("width", width)):
        if pixels is not None and whole(pixels) is None:
            return f"{file}: its {side} {pixels:g} is no number of pixels; fix it"
    known = height is not None and width is not None and height >= 1 and width >= 1
    things = []
    for element in things_of:
        corners = element.find("bndbox")
        values = [None if corners is None else _number(corners, corner) for corner in CORNERS]
        x1, y1, x2, y2 = values
        box = None if x1 is None or y1 is None or x2 is None or y2 is None else (x1, y1, x2, y2)
        difficult = flag((element.findtext("difficult") or "").strip())
        things.append(Thing((element.findtext("name") or "").strip(), box, difficult))
    name = (root.findtext("filename") or "").strip()
    return Record(name, (int(height or 0), int(width or 0)) if known else None, things)


def annotations_of(
    file: Path, record: Record, image: int, numbers: Mapping[str, int], offset: int
) -> Iterator[dict[str, Any] | str]:
    """The objects of an XML file as annotations of COCO, or what is wrong with each.

    Args:
        file: the XML file.
        record: what it says.
        image: number of its image.
        numbers: of the classes, by name.
        offset: number of the first pixel.
    """
    for place, thing in enumerate(record.things, 1):
        where = f"{file}, object {place}"
        if thing.box is None or thing.name not in numbers:
            yield f"{where}: it has no name, or no bndbox with four numbers"
        elif thing.difficult is None:
            yield f"{where}: its `difficult` is neither 0 nor 1"
        else:
            x1, y1, x2, y2 = thing.box
            yield {
                "id": where,
                "image_id": image,
                "category_id": numbers[thing.name],
                "bbox": [x1 - offset, y1 - offset, x2 - x1 + offset, y2 - y1 + offset],
                "iscrowd": int(thing.difficult),
            }


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
    return number(element.findtext(name) or "")
