"""Divides a data set without a validation split, always alike: by a hash of the images' file names."""

import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any

from autoprune.errors import DataError
from autoprune.layouts.source import Content, Part

AUGMENTED = re.compile(r"\.rf\.[0-9A-Za-z]+(?=\.\w+$)")
"""What Roboflow adds to the name of each augmented copy: copies of one image stay in one part."""

ELSEWHERE = re.compile(r"/|\.\./|[A-Za-z]:/|\w+://")
"""How an absolute path starts, or one that leads out of the data set's folder."""


def take_part(content: Mapping[str, Any], part: Part) -> Content:
    """The images of one part, with their annotations.

    An image is validated on where the hash of its name, as a fraction of the largest, is below
    ``part.fraction``. So it stays where it is when others are added. Of a set so small that one part would be
    empty, the image with the lowest (or the highest) hash makes up that part.

    Raises:
        DataError: there are fewer than two images with different names.
    """
    images = [image for image in content["images"] if isinstance(image, dict)]
    hashes = [name_hash(str(image.get("file_name"))) for image in images]
    val = held_out(hashes, part.fraction)
    chosen = (
        [value in val for value in hashes] if part.name == "val" else [value not in val for value in hashes]
    )
    kept = [image for image, is_chosen in zip(images, chosen, strict=True) if is_chosen]
    others = {_key(image.get("id")) for image, is_chosen in zip(images, chosen, strict=True) if not is_chosen}
    others -= {_key(image.get("id")) for image in kept}
    annotations = [
        record
        for record in content["annotations"]
        if not (isinstance(record, dict) and _key(record.get("image_id")) in others)
    ]
    return {**content, "images": kept, "annotations": annotations}


def held_out(hashes: Sequence[float], fraction: float) -> set[float]:
    """The hashes of the images to validate on.

    Raises:
        DataError: see `take_part`.
    """
    different = sorted(set(hashes))
    if len(different) < 2:
        raise DataError(
            f"val_fraction: different names of images: {len(different)}, too few to divide; give --data "
            "(YAML: data) more images"
        )
    val = {value for value in different if value < fraction}
    if not val:
        return {different[0]}
    return val - {different[-1]} if len(val) == len(different) else val


def name_hash(file_name: str) -> float:
    """A number from 0 to 1 by the name below the data set's folder; of another path, by its last part."""
    name = AUGMENTED.sub("", file_name.replace("\\", "/").removeprefix("./"))
    if ELSEWHERE.match(name):
        name = name.rsplit("/", 1)[-1]
    return int.from_bytes(sha256(name.encode("utf-8", "surrogatepass")).digest()[:7], "big") / 2**56


def _key(number: Any) -> str:
    """An image's id, as some tools write 7 as 7.0 or as a text in one place only."""
    return str(int(number) if isinstance(number, float) and number.is_integer() else number)
