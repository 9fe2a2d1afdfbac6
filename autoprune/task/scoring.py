"""Importance of a task's channels, computed once per criterion and settings, then read from a file."""

import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
    origin_of,
    save,
    score_together,
    settings_hash,
)
from autoprune.progress import say
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
    task: PruningTask, criteria: Sequence[str], path: Path | None = None, kept: Path | None = None
) -> dict[str, Importance]:
    """Scores the channels by several criteria, with the seed and the images that the first one uses alone.

    Args:
        task: detector and data.
        criteria: keys of `importance.CRITERIA`; gradient ones take one pass over the images for all.
        path: `importance.safetensors` to read scores from and to keep them in.
        kept: the file that ``path`` is a copy of, to name it where its scores are not taken.

    Returns:
        {criterion: {group: [width]}}, in the order of ``criteria``.
    """
    inputs = _inputs(task, criteria)
    scores = _read(path, inputs.keys, task.graph)
    if missing := [criterion for criterion in criteria if criterion not in scores]:
        batches = ImageBatches(task, inputs.images)
        if path is not None:
            _say_why_again(
                path, kept or path, {criterion: inputs.settings[criterion] for criterion in missing}
            )

        def keep(criterion: str, importance: Importance) -> None:
            if path is not None:  # at once, so that an interrupt during the next one loses nothing of it
                settings = inputs.settings[criterion]
                save(path, criterion, inputs.keys[criterion], importance, _origin(settings))

        scores |= score_together(missing, task.model, task.graph, lambda: batches, inputs.seed, keep)
    return {criterion: scores[criterion] for criterion in criteria}


def missing_scores(task: PruningTask, criteria: Sequence[str], path: Path) -> list[str]:
    """Which of the criteria `score_several` would compute, and not read from the file."""
    read = _read(path, _inputs(task, criteria).keys, task.graph)
    return [criterion for criterion in criteria if criterion not in read]


def scores_beside(space: Path) -> Path:
    """Where `autoprune space` keeps the scores that a space file was made from, for later searches."""
    return space.with_suffix(".importance.safetensors")


def copy_scores(space: Path | None, path: Path) -> Path:
    """Initializes a run's ``path`` with the scores beside its space file.

    Scores of other settings do no harm: their hashes differ, so they are not used.

    Returns:
        the file that ``path`` was now copied from, else ``path``.

    Raises:
        RunError: the file beside the space is damaged; blamed here, not on its copy.
    """
    if space is not None and scores_beside(space).is_file() and not path.exists():
        check_readable(scores_beside(space))
        with replacing(path) as temporary:
            shutil.copyfile(scores_beside(space), temporary)
        return scores_beside(space)
    return path


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
    """What scores depend on: the images, as indices, the seed, and all of it by criterion."""

    images: Sequence[int]
    seed: int
    settings: Mapping[str, Mapping[str, Any]]

    @cached_property
    def keys(self) -> dict[str, str]:
        """By criterion, what tells scores of other settings apart."""
        return {criterion: settings_hash(**each) for criterion, each in self.settings.items()}


def _inputs(task: PruningTask, criteria: Sequence[str]) -> _Inputs:
    config = task.config
    seed = derive(config.seed, "importance", criteria[0])
    chosen = random_subset(len(task.train), config.importance_images, seed)
    ids = [int(task.train.image_ids[index]) for index in chosen]
    # Left out where none were given, as scores of earlier versions do not say them.
    given = task.spec.arguments
    arguments = {"model_arguments": settings_hash(**given)} if given else {}
    settings = {
        criterion: {
            "weights": task.weights_sha256,
            "criterion": criterion,
            "seed": seed,
            "images": ids if CRITERIA[criterion].needs_data else [],
            "data": task.train.fingerprint,
            **(arguments if CRITERIA[criterion].needs_data else {}),
        }
        for criterion in criteria
    }
    return _Inputs(chosen, seed, settings)


def _origin(settings: Mapping[str, Any]) -> dict[str, Any]:
    """What a file of scores says of their settings: all, but of the images only the number."""
    return {**settings, "images": len(settings["images"])}


def _say_why_again(path: Path, kept: Path, missing: Mapping[str, Mapping[str, Any]]) -> None:
    """Says why scores of these criteria in ``path`` are not taken, by what differs in their settings."""
    for criterion, settings in missing.items():
        if (before := origin_of(path, criterion)) is None:
            continue
        now = _origin(settings)
        if not before:
            why = "of other weights, training data, importance_images or seed"
        elif before.get("weights") != now["weights"]:
            why = "of other weights"
        elif before.get("model_arguments") != now.get("model_arguments"):
            why = "of other --model-arguments, such as another input size, or of an earlier version"
        elif before.get("data") != now["data"]:
            why = "of other training data"
        elif before.get("images") != now["images"]:
            why = f"of {before.get('images')} images, not {now['images']}: see --importance-images"
        elif before.get("seed") != now["seed"]:
            why = "with another --seed, or chosen for another criterion"
        else:
            why = "of another version"
        say(f"the channels are scored again: {kept} holds scores {why}")
        return


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
