"""Bilinear resizing with the fixed-point arithmetic of OpenCV, to the last bit, without OpenCV.

A pixel of 8 bits is a weighted mean of four. OpenCV rounds the weights to 1/2048 and cuts low bits off
between the two directions, which moves one pixel in ten by one level: enough to move boxes.
"""

import torch
from torch import Tensor

_ONE = 2048
"""Of the fixed-point weights."""


def resize_as_opencv(image: Tensor, size: tuple[int, int]) -> Tensor:
    """What ``cv2.resize(…, interpolation=INTER_LINEAR)`` makes of an image of 8 bits.

    Args:
        image: [c, h, w] in [0, 1]; rounded to 1/255.
        size: height and width of the result.

    Returns:
        [c, height, width] in [0, 1], multiples of 1/255.
    """
    height, width = map(int, image.shape[-2:])
    pixels = (image * 255).round().clamp(0, 255).int()
    first, weight = _taps(width, size[1], image.device)
    outside = (first < 0) | (first >= width - 1)
    first, weight = first.clamp(0, width - 1), weight.masked_fill(outside, 0)
    left, right = pixels[..., first], pixels[..., (first + 1).clamp(max=width - 1)]
    across = left * _fixed(1 - weight) + right * _fixed(weight)
    first, weight = _taps(height, size[0], image.device)
    top, bottom = (across[..., row.clamp(0, height - 1), :] for row in (first, first + 1))
    upper, lower = (_fixed(part)[:, None] for part in (1 - weight, weight))
    # Twice cut, once rounded: 11 bits of each direction, less 4, less 16, less the last 2.
    mean = _cut(_cut(top, 4) * upper, 16) + _cut(_cut(bottom, 4) * lower, 16)
    return _cut(mean + 2, 2).to(image.dtype) / 255


def _taps(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each new position the old one at or before it, and the weight of the one behind that."""
    place = ((torch.arange(new, device=device, dtype=torch.float64) + 0.5) * (old / new) - 0.5).float()
    first = place.floor()
    return first.long(), place - first


def _fixed(weight: Tensor) -> Tensor:
    return (weight * _ONE).round().int()


def _cut(value: Tensor, bits: int) -> Tensor:
    return torch.div(value, 2**bits, rounding_mode="floor")
