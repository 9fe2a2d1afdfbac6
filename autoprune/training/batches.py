"""What training asks of a data split, which images make up a batch, and the batches, loaded ahead."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from autoprune.images.augment import draw_change
from autoprune.images.batch import Sample, make_sample, pinned, to_batch
from autoprune.images.decode import threads
from autoprune.images.prefetch import prefetched
from autoprune.seeding import seed as derive
from autoprune.training import distributed
from autoprune.training.settings import TrainSettings


class TrainSplit(Protocol):
    """The part of `data.coco.Split` that training needs."""

    def __len__(self) -> int:
        """Number of images."""

    @property
    def fingerprint(self) -> str:
        """A hash of the images and their boxes, by which a resumed training knows its data."""

    def get(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        """An image, uint8 [3, h, w], and its target, in pixels of it; called in several threads at once."""

    def batch(
        self, indices: Sequence[int], device: torch.device, flip: Sequence[bool] | None = None
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        """Images, float [3, h, w] in [0, 1], and targets as torchvision's detectors take them."""


Batch = tuple[list[Tensor], list[dict[str, Any]]]
"""Images and targets of this process, as of `TrainSplit.batch`."""


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


@contextmanager
def loaded_ahead(
    split: TrainSplit, settings: TrainSettings, device: torch.device, start: int
) -> Iterator[Iterator[Batch]]:
    """The batches of all steps from ``start`` on; those of the next two are loaded while a step computes.

    What a step draws is a function of seed and step, so they are the same however they are loaded, and
    wherever a training resumes. Under `torchrun` each process loads its own images alone.

    Args:
        split: training images.
        settings: length, batch size, seed and augmentation.
        device: where the batches are needed.
        start: the first step.
    """
    rank, processes = distributed.rank(), distributed.world_size()

    def draws() -> Iterator[tuple[int, bool, int]]:
        for step in range(start, settings.steps):
            draw = draw_batch(len(split), settings.batch_size, step, settings.seed)
            for place in range(rank, settings.batch_size, processes):
                seed = derive(settings.seed, "augment", step, place)
                yield draw.indices[place], draw.flips[place], seed

    def load(draw: tuple[int, bool, int]) -> Sample:
        index, mirrored, seed = draw
        image, target = split.get(index)
        change = draw_change(image.shape[-2:], seed) if settings.augment else None
        return pinned(make_sample(image, target, mirrored, change), device)

    count = len(range(rank, settings.batch_size, processes))
    with prefetched(load, draws(), 2 * max(count, threads())) as samples:
        yield (to_batch([next(samples) for _ in range(count)], device) for _ in range(start, settings.steps))
