"""Checks of what the user gave, before anything is loaded: device, data, weights, model of the space."""

import json
import shlex
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from autoprune.config import Config, DataPaths
from autoprune.data.coco import Split
from autoprune.detectors import load_dense
from autoprune.errors import ConfigError, DataError
from autoprune.progress import say
from autoprune.resize import Resize
from autoprune.space.file import SpaceFile
from autoprune.training.reconstruct import LEAST_IMAGES

_HINT = "`autoprune demo` shows all the steps without any data"
LARGEST_FACTOR = 2  # COCO's images, 480 pixels high in the median, are enlarged 1.7-fold to the usual 800


def pick_device(config: Config) -> torch.device:
    """Sets the number of threads and returns the device that ``config`` asks for.

    Raises:
        ConfigError: the device is not available.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    if config.device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(config.device)
        torch.zeros(1, device=device).item()  # `meta` has tensors too, but no values
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ConfigError(
            f"device {config.device!r} can't be used here; see `autoprune doctor`, or omit --device"
        ) from error
    return device


def refuse_missing(config: Config) -> None:
    """Refuses data or weights that do not exist, and says what to type.

    Raises:
        DataError: the data does not exist.
        ConfigError: the weights do not exist.
        ModelError: no weights are given, and the model can't be built.
    """
    if missing := [path for path in _data_paths(config) if not path.exists()]:
        raise DataError(f"no data at {missing[0]}: give --data FOLDER (YAML: data); {_HINT}")
    if config.weights is None:
        # where the model can't be built, that is what is wrong
        load_dense(config.model, config.model_arguments, config.num_classes, config.norm_kind)
        raise ConfigError(
            f"no dense weights for {config.model}: give --weights FILE (YAML: weights), or make some with "
            f"`autoprune train`; {_HINT}"
        )
    path = Path(config.weights)
    if path.suffix in (".safetensors", ".pt", ".pth") and not path.is_file():
        raise ConfigError(f"no weights at {path}: give --weights FILE (YAML: weights); {_HINT}")


def check_num_classes(num_classes: int | None, needed: int) -> None:
    """Refuses a detector with too few classes for the data.

    Args:
        num_classes: the user's number, background included; ``None`` takes that of the data.
        needed: largest category id of the data plus one.

    Raises:
        ConfigError: labels of the data would be out of range.
    """
    if num_classes is not None and num_classes < needed:
        raise ConfigError(
            f"num_classes: {num_classes} is too few, the category ids of the data need {needed} with the "
            "background; give that, or omit --num-classes (YAML: num_classes)"
        )


def warn_enlarged(images: Split, rule: Resize | None, arguments: Mapping[str, Any]) -> None:
    """Says so where a detector enlarges the images so much that it may be set to another size than intended.

    Args:
        images: a split at the detector's size.
        rule: how the detector resizes.
        arguments: of its builder.
    """
    pairs = zip(images.stored_sizes, images.sizes, strict=True)
    factor = statistics.median(min(new) / min(stored) for stored, new in pairs)
    if factor <= LARGEST_FACTOR:
        return
    side = round(statistics.median(min(stored) for stored in images.stored_sizes))
    remedy = ""
    if rule is not None and rule.fixed is None:
        changed = shlex.quote(json.dumps({**arguments, "min_size": side}))
        remedy = f"; where it was trained at less, give --model-arguments {changed} (YAML: model_arguments)"
    say(
        f"the detector enlarges the {images.name} images {factor:.1f}-fold, from a shorter side of {side} "
        f"pixels (median){remedy}"
    )


def check_batch_size(batch_size: int, images: int) -> None:
    """Refuses batches that would hold images twice; the default size is right for any number of images.

    Raises:
        ConfigError: there are fewer training ``images`` than a batch has.
    """
    if batch_size > max(images, Config.model_fields["batch_size"].default):
        raise ConfigError(
            f"batch_size: {batch_size} is more than the {images} training images; give {images} or less "
            "(--batch-size, YAML: batch_size)"
        )


def check_reconstruction(images_used: int, images: int) -> None:
    """Refuses a reconstruction that every trial would fail in.

    Args:
        images_used: the user's ``reconstruct_images``.
        images: number of training images.

    Raises:
        ConfigError: there are too few of them to hold one out.
    """
    if images_used and images < LEAST_IMAGES:
        raise ConfigError(
            f"reconstruct_images: a reconstruction needs {LEAST_IMAGES} training images at least, and there "
            f"is {images}; give --reconstruct-images 0 (YAML: reconstruct_images), or more images"
        )


def input_files(config: Config) -> tuple[Path, ...]:
    """The files and folders that a worker reads: the data, and the weights where these are a file."""
    paths = _data_paths(config)
    if not isinstance(config.data, DataPaths):
        paths += sorted(config.data.glob("annotations/*.json"))
    weights = Path(config.weights or "")
    return (*paths, weights) if weights.is_file() else tuple(paths)


def with_space(config: Config, file: SpaceFile | None) -> Config:
    """Takes model, its arguments, criterion and input size from a space where ``config`` leaves them open.

    Raises:
        ConfigError: the space is for another model, or ranks channels by another criterion.
    """
    if file is None:
        return config
    given = config.model_fields_set
    if "model" in given and config.model != file.model:
        raise ConfigError(
            f"the search space is for {file.model}, not {config.model}; give another --space or --model"
        )
    ranked = "criterion" in file.model_fields_set
    if ranked and "criterion" in given and config.criterion != file.criterion:
        raise ConfigError(
            f"the search space ranks channels by {file.criterion}, not {config.criterion}; "
            "change `criterion` there, or omit --criterion"
        )
    changes: dict[str, Any] = {"model": file.model}
    if ranked:
        changes["criterion"] = file.criterion
    if "model_arguments" not in given:
        changes["model_arguments"] = file.model_arguments
    if config.input_size is None:
        changes["input_size"] = file.input_size
    return config.model_copy(update=changes)


def _data_paths(config: Config) -> list[Path]:
    """The data folder, or the annotations and images of each split."""
    if isinstance(config.data, DataPaths):
        splits = (config.data.train, config.data.val)  # the others are not read unless asked for
        return [path for split in splits for path in (split.annotations, split.images)]
    return [config.data]


def trained_on(config: Config, images: int) -> str | None:
    """One line where the training of a trial sees fewer images than the training split has."""
    steps = config.rungs[-1]
    if not steps or (seen := steps * config.batch_size) >= images:
        return None
    return (
        f"each trial trains on {seen} of {images} training images at most, {steps} steps of "
        f"{config.batch_size}; the last of --rungs (YAML: rungs) says how many"
    )
