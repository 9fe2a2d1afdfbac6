"""Categories, images and annotations of a COCO file: each record cleaned, or why it can't be used."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from autoprune.errors import DataError
from autoprune.records.convention import Convention
from autoprune.records.fields import (
    Identity,
    box,
    flag,
    identity,
    is_absent,
    is_absent_box,
    number,
    printable,
    shown,
    whole,
)
from autoprune.records.ids import Ids
from autoprune.records.segmentation import box_around

Record = dict[str, Any]

LEAST_SIDE = 2**-21
"""The least visible part of an image's side for a box: four steps of float32 at the far end of the side. What
is smaller can be empty in training, after scaling, mirroring and float32, at any size of the images."""
LARGEST_AREA = 1e10
"""Square pixels; COCOeval ignores boxes of larger area."""


def _place(identity_: Any) -> str:
    """An annotation's id for a message; of a converted layout it names the file and the line, in full."""
    return printable(identity_) if isinstance(identity_, str) else shown(identity_)


class Notes:
    """What was read in another way than it is written, counted, with the first place of each."""

    def __init__(self) -> None:
        self._counts: dict[str, tuple[int, str]] = {}

    def add(self, what: str, place: str) -> None:
        """Counts one more; ``what`` says how it was read."""
        count, first = self._counts.get(what, (0, place))
        self._counts[what] = (count + 1, first)

    def lines(self) -> tuple[str, ...]:
        """One line for each kind."""
        return tuple(f"{what}: {count}, first {first}" for what, (count, first) in self._counts.items())


def read_categories(file: Path, records: Iterable[Any]) -> tuple[dict[int, Record], Ids]:
    """The categories by number, and the numbers of their ids.

    Raises:
        DataError: one has no id or no name, two have the same id, or there are none.
    """
    listed: dict[Identity, Record] = {}
    for place, record in enumerate(records):
        key = identity(record.get("id")) if isinstance(record, dict) else None
        name = _name(record.get("name")) if isinstance(record, dict) else None
        if key is None or name is None:
            raise DataError(
                f"{file}: category {shown(record, 80)} (categories[{place}]) needs an id and a name; fix it "
                "in the file"
            )
        if key in listed and listed[key]["name"] != name:
            raise DataError(
                f"{file}: two categories have the id {shown(key)}, {listed[key]['name']!r} and {name!r}; "
                "fix it in the file"
            )
        listed[key] = {**record, "name": name}
    if not listed:
        raise DataError(f"{file} lists no categories; there is nothing to detect")
    ids = Ids(listed, [(record["name"], key) for key, record in listed.items()], "categories")
    categories: dict[int, Record] = {}
    for key, record in listed.items():
        number_ = ids.number(key)
        assert number_ is not None
        categories[number_] = {**record, "id": number_}
    return categories, ids


def _name(value: Any) -> str | None:
    """A category's name; a number is one, too."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    return printable(value) if isinstance(value, str) and value.strip() else None


class ImageList:
    """The image records of a file.

    Attributes:
        records: the usable ones by number; ``width`` and ``height`` are whole numbers or absent.
        ids: the numbers of their ids.
        twice: of numbers that several records have, the names of two different files.
    """

    def __init__(self, records: Iterable[Any], skipped: list[str]) -> None:
        """Reads the records; adds a line to ``skipped`` for each that can't be used."""
        listed: list[tuple[Identity, Record]] = []
        for place, record in enumerate(records):
            cleaned = _image(record, place)
            if isinstance(cleaned, str):
                skipped.append(cleaned)
            else:
                listed.append(cleaned)
        names: dict[str, Identity] = {}  # several records of one name are one image
        for key, record in listed:
            names.setdefault(record["file_name"], key)
        self.ids = Ids((key for key, _ in listed), names.items(), "images")
        self.records: dict[int, Record] = {}
        self.twice: dict[int, tuple[str, str]] = {}
        for key, record in listed:
            number_ = self.ids.number(key)
            assert number_ is not None
            if (first := self.records.get(number_)) is None:
                self.records[number_] = {**record, "id": number_}
                continue
            first_name, name = printable(first["file_name"]), printable(record["file_name"])
            skipped.append(f"image {name}: its id {shown(key)} is taken by {first_name}")
            if first_name != name:
                self.twice[number_] = (first_name, name)


def _image(record: Any, place: int) -> tuple[Identity, Record] | str:
    """The id and the record of an image, or why it can't be used."""
    key = identity(record.get("id")) if isinstance(record, dict) else None
    name = record.get("file_name") if isinstance(record, dict) else None
    if key is None or not isinstance(name, str) or not name.strip():
        return f"image {shown(record, 80)} (images[{place}]): it needs an id and a file_name"
    cleaned = dict(record)
    for side in ("width", "height"):
        value = cleaned.pop(side, None)
        if is_absent(value):
            continue
        pixels = whole(value)
        if pixels is None or pixels <= 0:
            return f"image {printable(name)}: its {side} {shown(value)} is no number of pixels"
        cleaned[side] = pixels
    return key, cleaned


class AnnotationReader:
    """Cleans the annotations of one file.

    Args:
        images: the usable images by number, with their stored ``height`` and ``width``; of an image that is
            listed twice, both numbers have the first record.
        image_ids: numbers of the images' ids.
        category_ids: numbers of the categories' ids.

    Attributes:
        notes: what was read in another way than it is written.
        convention: what the boxes together say of how they are written.
    """

    def __init__(self, images: Mapping[int, Mapping[str, Any]], image_ids: Ids, category_ids: Ids) -> None:
        self.notes = Notes()
        self.convention = Convention()
        self._seen: set[tuple[Any, ...]] = set()
        self._images, self._image_ids, self._category_ids = images, image_ids, category_ids

    def read(self, record: Any, place: int) -> Record | str | None:
        """The annotation without its id, ``None`` for one listed before, or why it can't be used, in a line.

        Args:
            record: as in the file.
            place: its index there.

        Raises:
            DataError: one of its ids is the name of several records.
        """
        if not isinstance(record, dict):
            return f"annotations[{place}]: {shown(record)} is no annotation"
        image_number = self._image_ids.number(record.get("image_id"))
        image = None if image_number is None else self._images.get(image_number)
        name = "no image" if image is None else printable(image["file_name"])
        own = f"annotations[{place}]" if record.get("id") is None else f"annotation {_place(record['id'])}"
        where = f"{own} ({name})"
        if image is None:
            missing = record.get("image_id") is None
            return f"{where}: " + (
                "it has no image_id" if missing else f"its image {shown(record['image_id'])} is missing"
            )
        category = self._category_ids.number(record.get("category_id"))
        if category is None:
            missing = record.get("category_id") is None
            return f"{where}: " + (
                "it has no category_id"
                if missing
                else f"its category {shown(record['category_id'])} is unknown"
            )
        for field, ids in (("image_id", self._image_ids), ("category_id", self._category_ids)):
            if ids.is_name(record[field]):
                self.notes.add(f"{field} is the name of one of the {ids.kind}, and is read as that", where)
        crowd = flag(record.get("iscrowd"))
        if crowd is None:
            return f"{where}: its iscrowd {shown(record['iscrowd'])} is neither 0 nor 1"
        corners = self._box(record, where)
        if isinstance(corners, str):
            return f"{where}: {corners}"
        if not crowd:
            self.convention.add(corners, image, where)
        if (problem := _box_problem(corners, image)) is not None:
            return f"{where}: {problem}"
        key = (image["id"], category, corners, crowd)
        if key in self._seen:
            self.notes.add("boxes listed twice count once", where)
            return None
        self._seen.add(key)
        return {
            "image_id": image["id"],
            "category_id": category,
            "bbox": list(corners),
            "area": self._area(record, corners, image, where),
            "iscrowd": int(crowd),
        }

    def _box(self, record: Mapping[str, Any], where: str) -> tuple[float, float, float, float] | str:
        """The box of an annotation, that around its segmentation where it has none, or what is wrong."""
        value = record.get("bbox")
        if is_absent_box(value) and (around := box_around(record.get("segmentation"))) is not None:
            self.notes.add("boxes taken around the segmentation, as bbox is not given", where)
            return around
        corners = box(value)
        return f"its box {shown(value)} is not [x, y, width, height]" if corners is None else corners

    def _area(
        self,
        record: Mapping[str, Any],
        corners: tuple[float, float, float, float],
        image: Mapping[str, Any],
        where: str,
    ) -> float:
        """The area in the file where COCOeval can use it, else that of the box."""
        value = record.get("area")
        area = number(value)
        if area is not None and 0 < area <= LARGEST_AREA:
            return value if isinstance(value, int) else area
        if "area" in record:
            self.notes.add("areas taken as width x height, as none is given that can be used", where)
        return min(corners[2] * corners[3], float(image["width"] * image["height"]))


def _box_problem(corners: tuple[float, float, float, float], image: Mapping[str, Any]) -> str | None:
    """Why a box can't be used; ``None`` where training and evaluation can."""
    x, y, width, height = corners
    text = (
        f"its box {shown([int(each) if each.is_integer() and abs(each) < 1e9 else each for each in corners])}"
    )
    if width <= 0 or height <= 0:
        return f"{text} has no area"
    sides = f"{image['width']}x{image['height']}"
    if x >= image["width"] or y >= image["height"] or x + width <= 0 or y + height <= 0:
        return f"{text} lies outside the image ({sides})"
    visible_width = min(x + width, image["width"]) - max(x, 0)
    visible_height = min(y + height, image["height"]) - max(y, 0)
    if visible_width < image["width"] * LEAST_SIDE or visible_height < image["height"] * LEAST_SIDE:
        return f"{text} is empty in training, clipped to the image ({sides}) and in float32"
    return None
