"""Decodes image files, and resizes them as the detector would."""

import math
import os
import re
import stat
import struct
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoprune.errors import DataError
from autoprune.files import what_is_no_file
from autoprune.images.pixels import UNREADABLE, Levels, is_deep, is_deep_color, to_rgb, undecodable
from autoprune.resize import Resizer, Resizing

EXIF_ORIENTATION = 0x0112
_T = Image.Transpose
TURNS = {
    2: (_T.FLIP_LEFT_RIGHT, _T.FLIP_LEFT_RIGHT),
    3: (_T.ROTATE_180, _T.ROTATE_180),
    4: (_T.FLIP_TOP_BOTTOM, _T.FLIP_TOP_BOTTOM),
    5: (_T.TRANSPOSE, _T.TRANSPOSE),
    6: (_T.ROTATE_270, _T.ROTATE_90),
    7: (_T.TRANSVERSE, _T.TRANSVERSE),
    8: (_T.ROTATE_90, _T.ROTATE_270),
}
"""What makes the stored pixels of an orientation upright, and what takes that back."""


def threads() -> int:
    """Threads for decoding: one per CPU that this process may use, at most eight."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, 8)


def resized_size(size: tuple[int, int], rule: Resizing) -> tuple[int, int]:
    """Height and width to which the detector resizes an image; its own resizing then changes nothing.

    Of a `Resize`: with s = min(min_size / shorter side, max_size / longer side) a side of n pixels gets
    ⌊n·s⌋, as in torchvision's `GeneralizedRCNNTransform`. Where rounding makes that one pixel short of its
    own fixed point, the rule is applied once more.
    """
    if rule is None:
        return size
    if isinstance(rule, Resizer):
        return rule.resized_size(size)
    if rule.fixed is not None:
        return rule.fixed
    if rule.min_size is None or rule.max_size is None:
        return size
    for _ in range(4):
        scale = min(rule.min_size / min(size), rule.max_size / max(size))
        new = (max(math.floor(size[0] * scale), 1), max(math.floor(size[1] * scale), 1))
        if new == size:
            break
        size = new
    return size


@dataclass(frozen=True)
class Header:
    """What an image file says before its pixels are decoded.

    Attributes:
        size: height and width as viewers show it, upright.
        stored: height and width of the stored pixels.
        orientation: EXIF's number, 1 (upright as stored) to 8.
        deep: whether it holds gray values of more than 8 bits.
        deep_color: whether it holds colors of 16 bits each.
    """

    size: tuple[int, int]
    stored: tuple[int, int]
    orientation: int
    deep: bool
    deep_color: bool


class View(NamedTuple):
    """How to see the pixels of a file.

    Attributes:
        stored: as they are stored, without the rotation that EXIF asks viewers for.
        levels: range of deep grays; ``None``: that of the image alone.
    """

    stored: bool = False
    levels: Levels | None = None


UPRIGHT = View()


def read_header(path: Path) -> Header:
    """Sizes, orientation and depth; those of many files are cached.

    Raises:
        DataError: the file is not an image.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for a writer
            raise DataError(f"{path} is no image: {what_is_no_file(path)}; replace it")
        return _header(path, status.st_mtime_ns, status.st_size)
    except Image.DecompressionBombError as error:
        count = re.search(r"\d+", str(error))
        pixels = f"{int(count[0]):,} pixels" if count else "too many pixels"
        raise DataError(f"{path} has {pixels}, more than are read; save it smaller") from error
    except UNREADABLE as error:
        problem = what_is_no_file(path)
        what = "not a readable image" if problem is None else f"no image: {problem}"
        raise DataError(f"{path} is {what}; replace it") from error


@lru_cache(maxsize=2**18)
def _header(path: Path, _stamp: int, _bytes: int) -> Header:
    with Image.open(path) as image:
        deep_color = is_deep_color(image)
        orientation, size = _orientation(image), (image.height, image.width)
        turned = (size[1], size[0]) if orientation >= 5 else size
        upright, stored = (size, turned) if _loads_upright(image) else (turned, size)
        return Header(upright, stored, orientation, is_deep(image.mode), deep_color)


def header_size(path: Path) -> tuple[int, int]:
    """Height and width, upright; errors as `read_header`."""
    return read_header(path).size


def _orientation(image: Any) -> int:
    """EXIF's orientation of an image that is open and not yet loaded."""
    try:
        number = Image.Image.getexif(image).get(
            EXIF_ORIENTATION, 1
        )  # PNG's own method would decode the image
    except (*UNREADABLE, KeyError, TypeError, EOFError, struct.error):  # damaged: viewers ignore it, too
        return 1
    return number if number in range(1, 9) else 1


def _loads_upright(image: Any) -> bool:
    """Whether Pillow itself applies the rotation: of all formats, to TIFF alone."""
    return bool(image.format == "TIFF")


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder, by the suffixes that Pillow supports, sorted by name.

    Raises:
        DataError: there are none.
    """
    suffixes = Image.registered_extensions()
    files = sorted(path for path in folder.glob("*") if path.suffix.lower() in suffixes)
    if not files:
        missing = "" if folder.is_dir() else ", there is no such folder"
        raise DataError(f"no images in {folder}{missing}; give --images a folder with .jpg or .png files")
    return files


def decode(path: Path, size: tuple[int, int], view: View = UPRIGHT, resize: Resizing = None) -> Tensor:
    """Reads an image and resizes it.

    Args:
        path: image file, of any format and mode that Pillow reads.
        size: height and width of the result.
        view: upright, unless it says otherwise.
        resize: a `Resizer` resizes to ``size`` itself; else it is done bilinearly with antialiasing.

    Returns:
        uint8 [3, height, width], RGB.

    Raises:
        DataError: the file can't be decoded.
    """
    try:
        # of a path, Pillow maps some TIFF files into memory, and then reads the rows of a rotated one wrongly
        with path.open("rb") as file, Image.open(file) as image:
            orientation, loads_upright = _orientation(image), _loads_upright(image)
            image.load()
            picture = to_rgb(image, view.levels)
    except UNREADABLE as error:
        raise undecodable(path, error) from error
    if orientation > 1 and loads_upright == view.stored:
        to_upright, to_stored = TURNS[orientation]
        picture = picture.transpose(to_stored if view.stored else to_upright)
    own = resize if isinstance(resize, Resizer) else None
    resizes = (picture.height, picture.width) != size
    if resizes and own is None:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    # by numpy, since torch would start its own threads in each that decodes
    pixels = torch.from_numpy(np.ascontiguousarray(np.array(picture).transpose(2, 0, 1)))
    return pixels if own is None or not resizes else own.resize_pixels(pixels)
