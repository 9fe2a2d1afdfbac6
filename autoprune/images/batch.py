"""Images as the loader hands them on, and as detectors take them: bytes on the host, floats on the device."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from autoprune.images.augment import Change, change_boxes, change_pixels

Target = dict[str, Any]


class Sample(NamedTuple):
    """One image, decoded and resized, with its boxes.

    Attributes:
        image: uint8 [3, height, width].
        target: ``boxes`` float32 [n, 4] and ``labels`` int64 [n], where they will be after ``change`` and
            the flip.
        mirrored: whether the pixels are still to be mirrored left to right.
        change: what is still to be done to the pixels before that.
    """

    image: Tensor
    target: Target
    mirrored: bool = False
    change: Change | None = None


def make_sample(
    image: Tensor, target: Target, mirrored: bool = False, change: Change | None = None
) -> Sample:
    """A sample whose boxes are changed and mirrored; its pixels follow in `to_batch`.

    Args:
        image: uint8 [3, height, width].
        target: of the image as it is; not changed.
        mirrored: mirror left to right.
        change: what is done before that.
    """
    if change is not None:
        target = change_boxes(target, image.shape[-2:], change)
    if mirrored:
        x1, y1, x2, y2 = target["boxes"].unbind(1)
        width = image.shape[-1]
        target = {**target, "boxes": torch.stack([width - x2, y1, width - x1, y2], 1)}
    return Sample(image, target, mirrored, change)


def pinned(sample: Sample, device: torch.device) -> Sample:
    """The sample in memory from which a CUDA device copies while it computes; the same for other devices."""
    if device.type != "cuda":
        return sample
    tensors = {name: sample.target[name].pin_memory() for name in ("boxes", "labels")}
    return sample._replace(image=sample.image.pin_memory(), target={**sample.target, **tensors})


def to_batch(samples: Iterable[Sample], device: torch.device | str) -> tuple[list[Tensor], list[Target]]:
    """Samples in the form of torchvision's detectors.

    Bytes are copied, a quarter of the floats; what is done to pixels is done on the device.

    Returns:
        Images, float32 [3, height, width] in [0, 1], and targets, on ``device``.
    """
    images, targets = [], []
    for sample in samples:
        pixels = sample.image.to(device, non_blocking=True).float().div_(255)
        if sample.change is not None:
            pixels = change_pixels(pixels, sample.change)
        images.append(pixels.flip(-1) if sample.mirrored else pixels)
        moved = {name: sample.target[name].to(device, non_blocking=True) for name in ("boxes", "labels")}
        targets.append({**sample.target, **moved})
    return images, targets
