"""Which positions of a feature map are sampled: many in objects, some elsewhere."""

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.seeding import seed as derive

COUNT = 2048  # of each feature map of all images together
LEAST = 64  # of each feature map of an image


Area: TypeAlias = tuple[float, float, float, float]


class SampledPositions(NamedTuple):
    """Positions of feature maps [n, height, width]; an index into a tensor of that shape, [S] each."""

    image: Tensor
    row: Tensor
    column: Tensor


class FeatureSampler:
    """Draws positions of feature maps, the same for all maps of one size.

    Args:
        boxes: the objects of each image, [k, 4] x1, y1, x2, y2 as fractions of what the detector sees.
        areas: top, left, bottom and right of each image as fractions of that; beyond is padding.
        seed: decides which.
        device: of the result.
        count: of a map of one image; by default `COUNT` of all images, `LEAST` at least.
    """

    def __init__(
        self,
        boxes: Sequence[np.ndarray[Any, Any]],
        areas: Sequence[Area],
        seed: int,
        device: torch.device,
        count: int | None = None,
    ) -> None:
        self._boxes, self._areas, self._seed, self._device = boxes, areas, seed, device
        self._count = max(LEAST, COUNT // len(boxes)) if count is None else count
        self._drawn: dict[tuple[int, int], SampledPositions] = {}

    def __call__(self, height: int, width: int) -> SampledPositions:
        """Positions of maps [n, height, width]."""
        if (height, width) not in self._drawn:
            random = np.random.default_rng(derive(self._seed, "positions", height, width))
            parts = [
                np.stack([np.full(len(cells), image), *np.divmod(cells, width)])
                for image in range(len(self._boxes))
                for cells in [self._draw(image, height, width, random)]
            ]
            positions = torch.from_numpy(np.concatenate(parts, axis=1)).to(self._device)
            self._drawn[height, width] = SampledPositions(*positions)
        return self._drawn[height, width]

    def _draw(self, image: int, height: int, width: int, random: np.random.Generator) -> np.ndarray[Any, Any]:
        """Cells of one image: half of them in objects if there are as many, the rest anywhere."""
        count = self._count
        y, x = np.divmod(np.arange(height * width), width)
        y, x = (y + 0.5) / height, (x + 0.5) / width
        x1, y1, x2, y2 = self._boxes[image].reshape(-1, 4, 1).swapaxes(0, 1)
        inside = ((x > x1) & (x < x2) & (y > y1) & (y < y2)).any(axis=0)
        top, left, bottom, right = self._areas[image]
        own = (y > top) & (y < bottom) & (x > left) & (x < right)
        objects = random.permutation(np.flatnonzero(inside))[: count // 2]
        others = np.setdiff1d(np.flatnonzero(own), objects)
        return np.concatenate([objects, random.permutation(others)[: count - len(objects)]])


class ObjectAreas(NamedTuple):
    """Where objects are in a batch of images.

    Attributes:
        boxes: of each image, [k, 4] x1, y1, x2, y2 as fractions of the batch.
        areas: where each image itself is: top, left, bottom and right as fractions of the batch.
    """

    boxes: list[np.ndarray[Any, Any]]
    areas: list[Area]


def object_areas(model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> ObjectAreas:
    """Each image's boxes and area, as fractions of the batch that the detector makes of the images."""
    from autoprune.detectors.inputs import image_corner, prepared  # slow: torchvision

    if (given := prepared(model, images, targets)) is not None:
        batch, targets = given[0], given[1] or []
        sizes, (height, width) = batch.image_sizes, batch.tensors.shape[-2:]
    else:
        sizes = [tuple(image.shape[-2:]) for image in images]
        height, width = (max(size[axis] for size in sizes) for axis in (0, 1))
    boxes = [target["boxes"].cpu().double().numpy() / [width, height, width, height] for target in targets]
    areas = []
    for size in sizes:
        top, left = image_corner(model, size, (height, width))
        areas.append((top / height, left / width, (top + size[0]) / height, (left + size[1]) / width))
    return ObjectAreas(boxes, areas)
