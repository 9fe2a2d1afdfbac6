"""Which label of a detector stands for which category of the data."""

import json
import mmap
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.errors import DataError

SHOWN = 12
"""Labels that a message names."""
BACKGROUND = ("background", "bg")
NO_PARENT = ("none", "null", "root", "")
LONGEST_LIST = 2**20
"""Bytes of a list of categories that is compared without reading the rest of its file."""

Categories = Mapping[int, Mapping[str, Any]]
"""Records by category id, as pycocotools' ``cats``."""


@dataclass(frozen=True)
class Labels:
    """Which label stands for which category.

    Attributes:
        names: name of each label.
        category_ids: category id of each label that the file lists.
        left_out: the category ids without a label; the file has no boxes of them.
    """

    names: dict[int, str]
    category_ids: dict[int, int]
    left_out: tuple[int, ...] = ()


def default_labels(categories: Categories, used: Collection[int], with_root: bool = False) -> Labels:
    """The labels where nothing says others.

    Category ids are the labels where all lie in 1 … 2·(their number), as COCO's own do; else labels count
    from 1 in the order of the ids. The root category of Roboflow's exports has none, nor has a background.

    Args:
        categories: of the file.
        used: the ids of those that have boxes.
        with_root: give the root category a label, too.
    """
    root = None if with_root else find_root(categories, used)
    numbers = sorted(number for number in categories if number != root)
    in_place = numbers[0] >= 1 and numbers[-1] <= 2 * len(numbers)
    ids = {number: number for number in numbers} if in_place else dict(enumerate(numbers, 1))
    names = {label: categories[number]["name"] for label, number in ids.items()}
    return Labels(names, ids, () if root is None else (root,))


def find_root(categories: Categories, used: Collection[int], place: int = 0) -> int | None:
    """``place`` where that is the id of no class: without boxes, the background or the others' parent."""
    others = [record for number, record in categories.items() if number != place]
    if place not in categories or place in used or not others:
        return None
    root = categories[place]
    if root["name"].strip().strip("_").lower() in BACKGROUND:
        return place
    parents = [_parent(record) for record in others]
    names_it = [parent == root["name"].strip().lower() for parent in parents]
    alone = _parent(root) in NO_PARENT and "supercategory" in root
    if all(names_it) or (alone and not any(parent in NO_PARENT for parent in parents)):
        return place
    return None


def _parent(record: Mapping[str, Any]) -> str:
    value = record.get("supercategory")
    return value.strip().lower() if isinstance(value, str) else ""


def labels_by_name(names: Mapping[int, str], categories: Categories, boxes: Mapping[int, int]) -> Labels:
    """The labels of a file whose categories are found by their names.

    Args:
        names: name of each label.
        categories: of the file, in any order and with any ids.
        boxes: how many boxes each category id has.

    Raises:
        DataError: a category with boxes has no label, or several categories have the name of one.
    """
    wanted = {name: label for label, name in names.items()}
    category_ids: dict[int, int] = {}
    left_out = []
    same = all(number in names and names[number] == record["name"] for number, record in categories.items())
    # of two with one name, such as a root and its only class, the one with boxes is meant
    for number, record in sorted(categories.items(), key=lambda item: not boxes.get(item[0])):
        name = record["name"]
        if same:  # also where two have one name
            category_ids[number] = number
        elif name not in wanted:
            if boxes.get(number):
                known, count = describe(names), boxes[number]
                those = "1 box is" if count == 1 else f"{count} boxes are"
                listed = {each["name"] for each in categories.values()}
                strange = [f'"{each}"' for each in names.values() if each not in listed]
                more = f"; no category is named {', '.join(strange[:SHOWN])}" if strange else ""
                raise DataError(
                    f'{those} of the category "{name}", which has no label (labels: {known}{more}); '
                    "give --labels NAME=LABEL,… with all categories (YAML: labels), or the same names"
                )
            left_out.append(number)
        elif wanted[name] not in category_ids:
            category_ids[wanted[name]] = number
        elif boxes.get(number):
            raise DataError(
                f'two categories are named "{name}" (ids {category_ids[wanted[name]]} and {number}); rename '
                "one in the annotations"
            )
        else:
            left_out.append(number)
    return Labels(dict(sorted(names.items())), dict(sorted(category_ids.items())), tuple(left_out))


def describe(names: Mapping[int, str]) -> str:
    """Labels for a message: ``1 RBC, 2 WBC``."""
    pairs = [f"{label} {name}" for label, name in sorted(names.items())]
    more = f", … ({len(pairs)} in all)" if len(pairs) > SHOWN else ""
    return ", ".join(pairs[:SHOWN]) + more


def as_option(names: Mapping[int, str]) -> str:
    """Labels as ``--labels`` takes them: ``RBC=1,WBC=2``."""
    return ",".join(f"{name}={label}" for label, name in sorted(names.items()))


def has_categories(file: Path, categories: Categories) -> bool:
    """Whether an annotation file lists just these categories, without reading all of it.

    Args:
        file: in JSON; ``False`` for another kind, and where its list is not found at once.
        categories: those of another file, with the ids that they have there.
    """
    try:
        with file.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
            start = content.rfind(b'"categories"') + len(b'"categories"')
            text = content[start : start + LONGEST_LIST].decode("utf-8", "ignore").lstrip()
        records = json.JSONDecoder().raw_decode(text.removeprefix(":").lstrip())[0]
        listed = {record["id"]: record["name"] for record in records}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return False
    return listed == {number: record["name"] for number, record in categories.items()}
