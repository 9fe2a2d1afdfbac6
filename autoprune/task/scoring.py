"""Importance of a task's channels, computed once per criterion and settings, then read from a file."""

import math
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from autoprune.files import replacing
from autoprune.graph import ChannelGraph
from autoprune.importance import (
    CRITERIA,
    Importance,
    check_readable,
    damaged,
    load,
    save,
    score_together,
    settings_hash,
)
from autoprune.seeding import random_subset
from autoprune.seeding import seed as derive
from autoprune.task.pruning_task import PruningTask


def score_channels(task: PruningTask, criterion: str, path: Path | None = None) -> Importance:
    """Scores the channels of the dense detector by one criterion: {group: [width]}.

    Args:
        task: detector and data.
        criterion: a key of `importance.CRITERIA`.
        path: `importance.safetensors` to read scores from and to keep them in.
    """
    return score_several(task, [criterion], path)[criterion]


def score_several(
    task: PruningTask, criteria: Sequence[str], path: Path | None = None
) -> dict[str, Importance]:
    """Scores the channels by several criteria, with the seed and the images that the first one uses alone.

    Args:
        task: detector and data.
        criteria: keys of `importance.CRITERIA`; gradient ones take one pass over the images for all.
        path: `importance.safetensors` to read scores from and to keep them in.

    Returns:
        {criterion: {group: [width]}}, in the order of ``criteria``.
    """
    inputs = _inputs(task, criteria)
    scores = _read(path, inputs.keys, task.graph)
    if missing := [criterion for criterion in criteria if criterion not in scores]:
        batches = ImageBatches(task, inputs.images)

        def keep(criterion: str, importance: Importance) -> None:
            if path is not None:  # at once, so that an interrupt during the next one loses nothing of it
                save(path, criterion, inputs.keys[criterion], importance)

        scores |= score_together(missing, task.model, task.graph, lambda: batches, inputs.seed, keep)
    return {criterion: scores[criterion] for criterion in criteria}


def missing_scores(task: PruningTask, criteria: Sequence[str], path: Path) -> list[str]:
    """Which of the criteria `score_several` would compute, and not read from the file."""
    read = _read(path, _inputs(task, criteria).keys, task.graph)
    return [criterion for criterion in criteria if criterion not in read]


def scores_beside(space: Path) -> Path:
    """Where `autoprune space` keeps the scores that a space file was made from, for later searches."""
    return space.with_suffix(".importance.safetensors")


def copy_scores(space: Path | None, path: Path) -> None:
    """Initializes a run's ``path`` with the scores beside its space file.

    Scores of other settings do no harm: their hashes differ, so they are not used.

    Raises:
        RunError: the file beside the space is damaged; blamed here, not on its copy.
    """
    if space is not None and scores_beside(space).is_file() and not path.exists():
        check_readable(scores_beside(space))
        with replacing(path) as temporary:
            shutil.copyfile(scores_beside(space), temporary)


@dataclass(frozen=True)
class ImageBatches:
    """Training images in batches; has a length, so that progress can tell the time left.

    Attributes:
        task: holds the images, and the number of images of a batch.
        indices: of the images.
    """

    task: PruningTask
    indices: Sequence[int]

    @property
    def images(self) -> int:
        """Number of images."""
        return len(self.indices)

    def __len__(self) -> int:
        """Number of batches."""
        return math.ceil(self.images / self.task.config.batch_size)

    def __iter__(self) -> Iterator[tuple[list[Tensor], list[dict[str, Any]]]]:
        """Images, each [3, h, w], and their targets."""
        size = self.task.config.batch_size
        for start in range(0, self.images, size):
            yield self.task.train.batch(self.indices[start : start + size], self.task.device)


@dataclass(frozen=True)
class _Inputs:
    """What scores depend on beside the weights: the images, as indices, the seed, and a key by criterion."""

    images: Sequence[int]
    seed: int
    keys: dict[str, str]


def _inputs(task: PruningTask, criteria: Sequence[str]) -> _Inputs:
    config = task.config
    seed = derive(config.seed, "importance", criteria[0])
    chosen = random_subset(len(task.train), config.importance_images, seed)
    ids = [int(task.train.image_ids[index]) for index in chosen]
    keys = {
        criterion: settings_hash(
            weights=task.weights_sha256,
            criterion=criterion,
            seed=seed,
            images=ids if CRITERIA[criterion].needs_data else [],
            data=task.train.fingerprint,
        )
        for criterion in criteria
    }
    return _Inputs(chosen, seed, keys)


def _read(path: Path | None, keys: dict[str, str], graph: ChannelGraph) -> dict[str, Importance]:
    """The scores that ``path`` holds under these keys, by criterion.

    Raises:
        RunError: the file is damaged, or holds scores of another detector under one of the keys.
    """
    if path is None:
        return {}
    read = {criterion: load(path, criterion, key) for criterion, key in keys.items()}
    kept = {criterion: scores for criterion, scores in read.items() if scores is not None}
    for criterion, scores in kept.items():
        for name, group in graph.prunable.items():
            if name not in scores or len(scores[name]) != group.width:
                raise damaged(path, f"it has no {criterion} scores of the {group.width} channels of {name}")
    return kept
