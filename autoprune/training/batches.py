"""What training asks of a data split, and which images make up a batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from autoprune.seeding import seed as derive


class TrainSplit(Protocol):
    """The part of `data.coco.Split` that training needs."""

    def __len__(self) -> int:
        """Number of images."""

    @property
    def fingerprint(self) -> str:
        """A hash of the images and their boxes, by which a resumed training knows its data."""

    def batch(
        self, indices: Sequence[int], device: torch.device, flip: Sequence[bool] | None = None
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """Images, float [3, h, w] in [0, 1], and targets as torchvision's detectors take them."""


class BatchDraw(NamedTuple):
    """The images of a step.

    Attributes:
        indices: of the images in the split.
        flips: whether each one is mirrored.
    """

    indices: list[int]
    flips: list[bool]


def draw_batch(count: int, batch_size: int, step: int, seed: int) -> BatchDraw:
    """Images and flips of a step: the shuffled epochs one after the other, cut into batches.

    Args:
        count: images in the split.
        batch_size: images per step.
        step: 0, 1, …
        seed: of the training run.

    Returns:
        ``batch_size`` indices below ``count``, and as many flips.
    """
    indices: list[int] = []
    flips: list[bool] = []
    position, end = step * batch_size, (step + 1) * batch_size
    while position < end:
        epoch, start = divmod(position, count)
        taken = min(count - start, end - position)
        random = np.random.default_rng(derive(seed, "epoch", epoch))
        order, flipped = random.permutation(count), random.random(count) < 0.5
        indices += order[start : start + taken].tolist()
        flips += flipped[start : start + taken].tolist()
        position += taken
    return BatchDraw(indices, flips)
