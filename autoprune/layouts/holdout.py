"""Divides a data set without a validation split, always alike: by a hash of the images' file names."""

import re
from collections.abc import Hashable, Sequence
from hashlib import sha256

from autoprune.errors import DataError
from autoprune.layouts.source import Part

AUGMENTED = re.compile(r"\.rf\.[0-9A-Za-z]+(?=\.\w+$)")
"""What Roboflow adds to the name of each augmented copy: copies of one image stay in one part."""

ELSEWHERE = re.compile(r"/|\.\./|[A-Za-z]:/|\w+://")
"""How an absolute path starts, or one that leads out of the data set's folder."""


def in_part(images: Sequence[tuple[str, Hashable]], part: Part) -> list[bool]:
    """Which images belong to one part.

    An image is validated on where the hash of its name, as a fraction of the largest, is below
    ``part.fraction``. So it stays where it is when others are added. Of a file that is listed under several
    names, the lowest hash decides for all. Of a set so small that one part would be empty, the image with the
    lowest (or the highest) hash makes up that part.

    Args:
        images: each by its name and its file; where that is not known, what else only this image has.
        part: which of the two.

    Raises:
        DataError: there are fewer than two images with different names.
    """
    lowest: dict[Hashable, float] = {}
    for name, file in images:
        lowest[file] = min(name_hash(name), lowest.get(file, 1.0))
    hashes = [lowest[file] for _, file in images]
    val = held_out(hashes, part.fraction)
    return [(value in val) == (part.name == "val") for value in hashes]


def held_out(hashes: Sequence[float], fraction: float) -> set[float]:
    """The hashes of the images to validate on.

    Raises:
        DataError: see `in_part`.
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
