"""What is pruned: the dense detector with its data, channel graph and importance, loaded once a process."""

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from autoprune.config import Config, DataPaths, ModelSpec
from autoprune.data.coco import Split, check_same_classes, open_data
from autoprune.detectors import Resize, detector_inputs, load_dense, resize_rule
from autoprune.errors import ConfigError, DataError
from autoprune.files import replacing
from autoprune.graph import ChannelGraph, analyze
from autoprune.importance import NEEDS_DATA, Importance, load, save, score_together, settings_hash
from autoprune.policy import Policy, hash_weights
from autoprune.progress import say
from autoprune.seeding import random_subset
from autoprune.seeding import seed as derive
from autoprune.space.file import SpaceFile
from autoprune.training import Teacher, recalibrate, reconstruct
from autoprune.training.distill import has_features, has_logits


@dataclass(frozen=True)
class PruningTask:
    """A dense detector and all that is needed to prune and train it.

    Attributes:
        config: the settings it was loaded by.
        model: the dense detector, in eval mode on ``device``; nobody changes it.
        spec: its architecture.
        graph: its channel groups.
        train: training split.
        val: validation split.
        input_size: height and width in pixels that costs are counted at.
        device: where to work.
        weights_sha256: hash of the dense weights.
    """

    config: Config
    model: nn.Module
    spec: ModelSpec
    graph: ChannelGraph
    train: Split
    val: Split
    input_size: tuple[int, int]
    device: torch.device
    weights_sha256: str

    def policy(self, keep: Mapping[str, Sequence[int]], metrics: Mapping[str, Any]) -> Policy:
        """The policy that keeps these channels."""
        return Policy(
            model=self.spec,
            weights_sha256=self.weights_sha256,
            criterion=self.config.criterion,
            input_size=self.input_size,
            widths={name: self.graph.groups[name].width for name in keep},
            keep={name: tuple(kept) for name, kept in keep.items()},
            metrics=metrics,
        )

    def costs(self, keep: Mapping[str, Sequence[int]]) -> dict[str, float]:
        """GFLOPs and millions of parameters of the detector that keeps these channels."""
        widths = {name: len(kept) for name, kept in keep.items()}
        return {"gflops": self.graph.gflops(widths), "mparams": self.graph.mparams(widths)}

    def reinitialize(self, pruned: nn.Module, keep: Mapping[str, Sequence[int]], seed: int) -> nn.Module:
        """A pruned detector as training begins with it: with new weights, or with new statistics only.

        Reconstructed layers give what the dense statistics were made from. To renew these as well made it
        worse: the loss of a RetinaNet-R18 at 33% of its GFLOPs rose from 0.62 to 0.85 (uniform policy), its
        mAP fell from 44.2 to 43.4. So only norms behind layers that could not be reconstructed are renewed.
        """
        config, left = self.config, None
        if images := config.reconstruct_images:
            solved = reconstruct(pruned, self.model, self.graph, keep, self.train, images, self.device, seed)
            pruned, left = solved.model, solved.left
            if not left:
                return pruned
        return recalibrate(
            pruned, self.train, config.recalibration_images, config.batch_size, self.device, seed, left
        )

    def teacher(self, keep: Mapping[str, Sequence[int]], importance: Importance | None) -> Teacher | None:
        """The dense detector as teacher of one pruned by ``keep``; ``None`` without distillation."""
        config, logits = self.config, bool(self.config.distill_logits) and has_logits(self.model)
        if not has_features(self.model) or not (config.distill or logits):
            return None
        weights = importance if config.distill_weighting == "importance" else None
        return Teacher(self.model, self.graph, keep, weights, logits)


def load_task(config: Config) -> PruningTask:
    """Loads detector and data and finds the channel groups.

    Raises:
        ConfigError: the device is not there, or no dense weights are given.
        DataError: the data is missing or not in COCO format.
        ModelError: the detector can't be built, or the weights are another architecture's.
    """
    device = pick_device(config)
    refuse_missing(config)
    split: Split | None = None
    num_classes = config.num_classes
    if num_classes is None:
        split = _open(config, "train", None)
        num_classes = split.num_classes
    model, spec = load_dense(
        config.model, config.model_arguments, num_classes, config.norm_kind, config.weights, config.seed
    )
    if config.distill_logits and not has_logits(model):
        say(f"distill_logits does nothing: {config.model} has no one-stage head that gives class logits")
    rule = resize_rule(model)
    train, val = (_open(config, name, rule) for name in ("train", "val"))
    check_same_classes(train, val)
    input_size = config.input_size or val.most_common_size
    graph = analyze(model, detector_inputs(input_size))
    weights_sha256 = hash_weights(model.state_dict())
    return PruningTask(
        config, model.to(device).eval(), spec, graph, train, val, input_size, device, weights_sha256
    )


def pick_device(config: Config) -> torch.device:
    """Sets the number of threads and returns the device that ``config`` asks for.

    Raises:
        ConfigError: the device is not there.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {config.device!r} can't be used here; see `autoprune doctor`, or leave --device away"
        ) from error
    return device


def refuse_missing(config: Config) -> None:
    """Says what to type where data or weights are not found.

    Raises:
        DataError: the data is not there.
        ConfigError: the weights are not there.
    """
    hint = "`autoprune demo` shows the whole way without any data"
    folders = (
        [path for _, split in config.data for path in (split.annotations, split.images)]
        if isinstance(config.data, DataPaths)
        else [config.data]
    )
    if missing := [path for path in folders if not path.exists()]:
        raise DataError(f"no data at {missing[0]}: give --data FOLDER (YAML: data); {hint}")
    if config.weights is None:
        raise ConfigError(
            f"no dense weights for {config.model}: give --weights FILE (YAML: weights), or make some with "
            f"`autoprune train`; {hint}"
        )
    path = Path(config.weights)
    if path.suffix in (".safetensors", ".pt", ".pth") and not path.is_file():
        raise ConfigError(f"no weights at {path}: give --weights FILE (YAML: weights); {hint}")


def with_space(config: Config, file: SpaceFile | None) -> Config:
    """Takes model, criterion and input size from a search space where ``config`` leaves them open.

    Raises:
        ConfigError: the space is for another model.
    """
    if file is None:
        return config
    given = config.model_fields_set
    if "model" in given and config.model != file.model:
        raise ConfigError(
            f"the search space is for {file.model}, not {config.model}; give another --space or --model"
        )
    if "criterion" in given and config.criterion != file.criterion:
        raise ConfigError(
            f"the search space ranks channels by {file.criterion}, not {config.criterion}; "
            "change `criterion` there, or leave --criterion away"
        )
    changes: dict[str, Any] = {"model": file.model, "criterion": file.criterion}
    if "model_arguments" not in given:
        changes["model_arguments"] = file.model_arguments
    if config.input_size is None:
        changes["input_size"] = file.input_size
    return config.model_copy(update=changes)


def score_channels(task: PruningTask, criterion: str, path: Path | None = None) -> Importance:
    """Scores the channels of the dense detector by one criterion.

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
    """
    config = task.config
    seed = derive(config.seed, "importance", criteria[0])
    chosen = random_subset(len(task.train), config.importance_images, seed)
    ids = [int(task.train.image_ids[index]) for index in chosen]
    keys = {
        criterion: settings_hash(
            weights=task.weights_sha256,
            criterion=criterion,
            seed=seed,
            images=ids if criterion in NEEDS_DATA else [],
            data=str(config.data),
        )
        for criterion in criteria
    }
    found = {name: load(path, name, key) if path is not None else None for name, key in keys.items()}
    missing = [name for name, scores in found.items() if scores is None]
    if not missing:
        return {name: scores for name, scores in found.items() if scores is not None}
    batches = OneByOne(task, chosen)
    made = score_together(missing, task.model, task.graph, lambda: batches, seed)
    if path is not None:
        for name, scores in made.items():
            save(path, name, keys[name], scores)
    return {name: made[name] if scores is None else scores for name, scores in found.items()}


def scores_beside(space: Path) -> Path:
    """Where `autoprune space` keeps the scores that a space file was made from, for the searches to come."""
    return space.with_suffix(".importance.safetensors")


def copy_scores(space: Path | None, path: Path) -> None:
    """Begins a run's ``path`` with the scores beside its space file; those of other settings are not used."""
    if space is not None and scores_beside(space).is_file() and not path.exists():
        with replacing(path) as temporary:
            shutil.copyfile(scores_beside(space), temporary)


@dataclass(frozen=True)
class OneByOne:
    """Training images in batches of one; has a length, so that progress can tell the time left."""

    task: PruningTask
    indices: Sequence[int]

    def __len__(self) -> int:
        """Number of batches."""
        return len(self.indices)

    def __iter__(self) -> Iterator[tuple[list[torch.Tensor], list[dict[str, Any]]]]:
        """One image and its target at a time."""
        return (self.task.train.batch([index], self.task.device) for index in self.indices)


def _open(config: Config, split: str, rule: Resize | None) -> Split:
    return open_data(config.data, split, rule, config.image_cache_gib, config.strict)
