"""Decodes image files, and resizes them as torchvision's detectors would."""

import math
import os
import warnings
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from autoprune.errors import DataError

EXIF_ORIENTATION = 0x0112


class ResizeRule(Protocol):
    """How a detector resizes its input, such as `detectors.Resize`."""

    @property
    def min_size(self) -> int | None:
        """Pixels of the shorter side."""

    @property
    def max_size(self) -> int | None:
        """Limit on the pixels of the longer side."""

    @property
    def fixed(self) -> tuple[int, int] | None:
        """Height and width of every image, instead of the two above."""


def threads() -> int:
    """Threads for decoding: one per CPU that this process may use, at most eight."""
    affinity = getattr(os, "sched_getaffinity", None)
    return min(len(affinity(0)) if affinity else os.cpu_count() or 1, 8)


def resized_size(size: tuple[int, int], rule: ResizeRule | None) -> tuple[int, int]:
    """Height and width to which the detector resizes an image; its own resizing then changes nothing.

    With s = min(min_size / shorter side, max_size / longer side) a side of n pixels gets ⌊n·s⌋, as in
    torchvision's `GeneralizedRCNNTransform`. Where rounding makes that one pixel short of its own fixed
    point, the rule is applied once more.
    """
    if rule is None:
        return size
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


def header_size(path: Path) -> tuple[int, int]:
    """Stored height and width.

    Raises:
        DataError: the file is not an image.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DataError(f"{path} is not a readable image; replace it") from error


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


def is_rotated(path: Path) -> bool:
    """Whether an EXIF entry asks viewers to rotate the image by 90 degrees."""
    with Image.open(path) as image:
        return image.getexif().get(EXIF_ORIENTATION, 1) in (5, 6, 7, 8)


def decode(path: Path, size: tuple[int, int]) -> Tensor:
    """Reads an image as stored, without any EXIF rotation, and resizes it with antialiasing.

    Args:
        path: image file, of any format and mode that Pillow reads; 16-bit grays keep their upper byte.
        size: height and width of the result.

    Returns:
        uint8 [3, height, width], RGB.

    Raises:
        DataError: the file can't be decoded.
    """
    try:
        with Image.open(path) as image:
            image.load()
            picture = _to_rgb(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        problem = " ".join(str(error).split())
        raise DataError(f"cannot decode {path}: {problem}; replace or remove it") from error
    if (picture.height, picture.width) != size:
        picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def _to_rgb(image: Any) -> Any:
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    elif image.mode == "I":
        image = Image.fromarray((np.asarray(image).clip(0, 65535) >> 8).astype(np.uint8))
    elif image.mode == "F":
        image = Image.fromarray(np.asarray(image).clip(0, 255).astype(np.uint8))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a detector does not use a palette's transparency
        return image.convert("RGB")
