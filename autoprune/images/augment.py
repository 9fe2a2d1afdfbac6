"""Augmentation of training images: scale jitter, crop and color, as a function of a seed.

The canvas keeps its size, so that a batch costs what it costs without. Pixels and boxes are changed apart:
boxes on the host, where some are dropped, pixels on the device.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

SCALES = (0.7, 1.4)
"""Limits of the size of what is shown; drawn on a logarithmic scale, so that enlarging is as likely."""
COLORS = 0.3
"""How far brightness, contrast and saturation may be from 1."""
VISIBLE = 0.25
"""Fraction of a box that must remain within the image; what shows less of a thing teaches little of it."""
GRAY = 0.5  # of what lies outside of the image


class Change(NamedTuple):
    """How one image is changed.

    Attributes:
        top: first row of the part that is shown, in pixels of the image; outside of it where negative.
        left: its first column.
        height: its rows; more than the image has where it is shown smaller.
        width: its columns.
        brightness: factor of all values.
        contrast: factor of their distance from the mean gray.
        saturation: factor of the distance of colors from gray.
    """

    top: int
    left: int
    height: int
    width: int
    brightness: float
    contrast: float
    saturation: float


def draw_change(size: tuple[int, ...], seed: int) -> Change:
    """What a seed does to an image of this height and width: the part that is shown lies anywhere in it."""
    random = np.random.default_rng(seed)
    scale = float(np.exp(random.uniform(*np.log(SCALES))))
    height, width = (max(round(side / scale), 1) for side in size)
    top, left = (
        int(random.integers(min(free, 0), max(free, 0) + 1)) for free in (size[0] - height, size[1] - width)
    )
    return Change(top, left, height, width, *random.uniform(1 - COLORS, 1 + COLORS, 3).tolist())


def change_boxes(target: dict[str, Any], size: tuple[int, ...], change: Change) -> dict[str, Any]:
    """The boxes after a change, clipped to the image; those that hardly remain are dropped with their labels.

    Args:
        target: ``boxes`` float32 [n, 4] (x1, y1, x2, y2 in pixels) and ``labels`` [n]; not changed.
        size: height and width of the image.
        change: what is done to it.

    Returns:
        The same with the boxes that have at least `VISIBLE` of their area within the image, and a pixel in
        each direction.
    """
    from torchvision import tv_tensors  # slow
    from torchvision.transforms.v2 import functional as F

    before = tv_tensors.BoundingBoxes(target["boxes"], format="XYXY", canvas_size=size)
    part = (change.top, change.left, change.height, change.width)
    boxes = F.resized_crop(before, *part, size=list(size)).as_subclass(Tensor)
    scale = torch.tensor([size[1] / change.width, size[0] / change.height])
    sides = boxes[:, 2:] - boxes[:, :2]
    whole = (target["boxes"][:, 2:] - target["boxes"][:, :2]) * scale
    kept = (sides >= 1).all(1) & (sides.prod(1) >= VISIBLE * whole.prod(1))
    return {**target, "boxes": boxes[kept], "labels": target["labels"][kept]}


def change_pixels(pixels: Tensor, change: Change) -> Tensor:
    """The pixels after a change.

    Args:
        pixels: float [3, height, width] in [0, 1]; not changed.
        change: what is done to them.

    Returns:
        The same shape, in [0, 1]; gray outside of the image.
    """
    from torchvision.transforms.v2 import functional as F  # slow

    colored = F.adjust_brightness(pixels, change.brightness)
    colored = F.adjust_saturation(F.adjust_contrast(colored, change.contrast), change.saturation)
    part = (change.top, change.left, change.height, change.width)
    shown: Tensor = F.resized_crop(colored - GRAY, *part, size=list(pixels.shape[-2:]))
    return shown + GRAY
