"""The detectors that a user names on the command line: by name, by policy file, or by folder."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.cli.settings import refuse_useless
from autoprune.config import Config, ModelSpec
from autoprune.errors import ConfigError
from autoprune.fields import is_vendor, near_vendor, weights_of_vendor
from autoprune.progress import say
from autoprune.run.names import CONFIG_FILE, POLICY_FILE, RECOVERED_FOLDER, WEIGHTS_FILE
from autoprune.trust import consent

if TYPE_CHECKING:
    from torch import nn

    from autoprune.data.coco import Split
    from autoprune.policy import Policy

COCO_CLASSES = 91
"""With the background: the number of classes that is assumed of a detector where nothing says another."""
WEIGHTS_SUFFIXES = (".pt", ".pth", ".safetensors")
"""Of files of weights, which are no policies."""
FALLBACK_SIZE = (640, 640)
"""Height and width that are assumed of a detector that states no input size."""


@dataclass(frozen=True)
class NamedDetector:
    """The detector that an argument of the command line stands for.

    Attributes:
        label: the argument, short enough for a table.
        spec: the dense architecture.
        policy: the policy it is pruned by; ``None`` for a dense detector.
        folder: the folder with its recovered weights, if there is one.
    """

    label: str
    spec: ModelSpec
    policy: "Policy | None" = None
    folder: Path | None = None

    @property
    def settings(self) -> set[str]:
        """Fields of `Config` that add to it: a policy says the architecture, a folder the weights as well."""
        if self.folder is not None:
            return set()
        weights = {"weights", "weights_key"}
        return weights if self.policy is not None else weights | {"model_arguments", "num_classes"}


def resolve(argument: str | None, config: Config) -> NamedDetector:
    """Resolves a policy file, a folder with one, or the name of a dense detector.

    Args:
        argument: the text that the user gave; ``None`` means ``config.model``.
        config: settings of a dense detector.

    Raises:
        ConfigError: the path holds no policy.
        PolicyError: the policy can't be read.
    """
    from autoprune.policy import Policy

    path = Path(argument) if argument is not None and not is_vendor(argument) else None
    if path is not None and not path.exists() and near_vendor(str(argument)):
        path = None  # a misspelled library; whoever builds the detector says so
    named = (".yaml", ".yml", *WEIGHTS_SUFFIXES)  # these can't be names of detectors
    if path is not None and (path.exists() or path.suffix in named or "/" in str(argument)):
        folder = path if path.is_dir() else None
        file = path / POLICY_FILE if folder else path
        if folder and not file.is_file():
            raise ConfigError(no_policy(folder, "a policy file, or a folder") + _dense_in(folder))
        if folder is None and (hint := _of_library(path)):
            raise ConfigError(f"{path} is no policy file; {hint}")
        policy = Policy.load(file)
        label = f"{path.parent.name}/{path.name}" if path.parent.name else path.name
        return NamedDetector(label, policy.model, policy, folder)
    name = argument or config.model
    consent(name)
    spec = ModelSpec(
        name=name,
        arguments=config.model_arguments,
        num_classes=config.num_classes or COCO_CLASSES,
        norm="frozen" if config.norm == "freeze" else "batch",
    )
    return NamedDetector(name, spec)


def _of_library(path: Path) -> str:
    """How to name another library's detector that a file, or a name of one, may stand for; else empty."""
    if path.suffix in WEIGHTS_SUFFIXES:
        return (
            f"a detector of another library has its name before the file, such as ultralytics:{path} or "
            f"libreyolo:{path}; other weights go with the name of their detector, --weights {path}"
        )
    known = path.suffix in (".yaml", ".yml") and path.name.lower().startswith(("yolo", "rtdetr"))
    if known and not (path.exists() and "groups:" in path.read_text(encoding="utf-8", errors="replace")):
        return f"for the architecture of Ultralytics, ultralytics:{path}"
    return ""


def _dense_in(folder: Path) -> str:
    """How to name the dense detector in a folder without a policy; empty where none is seen."""
    if (folder / "config.json").is_file():
        return f"; for the dense detector of Transformers in it, --model transformers:{folder}"
    weights = folder / WEIGHTS_FILE
    return f"; for the dense detector in it, --weights {weights}" if weights.is_file() else ""


def with_dense(detector: NamedDetector, config: Config) -> Config:
    """``config`` with the model that an argument names, and the weights that a library's name has.

    Args:
        detector: the detector; one that `resolve` made of ``config`` itself changes nothing.
        config: settings of the command line.
    """
    spec = detector.spec
    weights = weights_of_vendor(spec.name) if config.weights is None else config.weights
    return config.model_copy(
        update={"model": spec.name, "model_arguments": spec.arguments, "weights": weights}
    )


def no_policy(folder: Path, instead: str = "a folder") -> str:
    """What is wrong with the folder of a detector that lacks its policy, and what to give."""
    return (
        f"{folder} holds no {POLICY_FILE}; give {instead} that `autoprune recover`, `export` or `apply` wrote"
    )


def resolve_all(arguments: Sequence[str], config: Config, flags: Iterable[str]) -> list[NamedDetector]:
    """Resolves the detectors that a user named, or ``config.model`` where there is none.

    Args:
        arguments: the texts that the user gave.
        config: settings of dense detectors.
        flags: the options that were given on the command line; one of a detector must be of use to one.

    Raises:
        ConfigError: a path holds no policy, a detector is given twice, or a flag does nothing.
        PolicyError: a policy can't be read.
    """
    if not arguments:
        return [resolve(None, config)]
    named = [resolve(argument, config) for argument in arguments]
    places = [os.path.realpath(argument) for argument in arguments]
    if twice := [place for place in places if places.count(place) > 1]:
        again = arguments[places.index(twice[0])]
        raise ConfigError(f"{again} is given twice; name each detector once")
    useful = set().union(*(detector.settings for detector in named))
    useless = {"model", "weights", "weights_key", "model_arguments", "num_classes"} - useful
    refuse_useless(flags, useless, f"with {arguments[0]}, which says it already; omit one of them")
    labels = [detector.label for detector in named]
    return [
        replace(detector, label=argument) if labels.count(detector.label) > 1 else detector
        for detector, argument in zip(named, arguments, strict=True)
    ]


def build_dense(
    detector: NamedDetector, config: Config, fresh_head: bool = False
) -> "tuple[nn.Module, ModelSpec]":
    """Builds the dense version of ``detector``, with the weights of ``config`` where it has any.

    Args:
        detector: the detector.
        config: its weights, and what else decides a detector without a policy.
        fresh_head: whether it will be trained, so that its class head need not be that of the weights.

    Raises:
        ModelError: it can't be built, or the weights are of another architecture or number of classes.
    """
    from autoprune.detectors import load_dense

    weights, key = config.weights, config.weights_key
    if detector.policy is not None:  # a policy decides the whole architecture
        spec = detector.policy.model
        return load_dense(
            spec.name,
            spec.arguments,
            spec.num_classes,
            spec.norm,
            weights,
            config.seed,
            key,
            fresh_head=fresh_head,
        )
    name, arguments, num_classes = detector.spec.name, config.model_arguments, config.num_classes
    return load_dense(
        name, arguments, num_classes, config.norm_kind, weights, config.seed, key, fresh_head=fresh_head
    )


def input_size_of(detector: NamedDetector, model: "nn.Module", config: Config) -> tuple[int, int]:
    """Height and width to count and to time at.

    The user's, the policy's, or a square of the size that the detector states; `FALLBACK_SIZE`, said in one
    line where progress is shown, for a detector that states none.
    """
    from autoprune.detectors import resize_rule

    if config.input_size is not None:
        return config.input_size
    if detector.policy is not None:
        return detector.policy.input_size
    rule = resize_rule(model)
    if rule is not None and rule.fixed is not None:
        return rule.fixed
    if rule is not None and rule.min_size is not None:
        return rule.min_size, rule.min_size
    height, width = FALLBACK_SIZE
    say(f"{detector.label} states no input size: {height}x{width} is assumed; --input-size sets another")
    return FALLBACK_SIZE


def open_split(
    config: Config, split: str, model: "nn.Module", labels: Mapping[int, str] | None = None
) -> "Split":
    """Opens one split of the data at the input size of ``model``.

    Args:
        config: names the data.
        split: its name.
        model: the detector.
        labels: name of each label; ``None`` takes those of ``config``, or that the data suggests.

    Raises:
        DataError: the data is missing, or in no layout that is read.
    """
    from autoprune.data.coco import open_data
    from autoprune.detectors import pixel_resizing

    if labels is None and config.labels is not None:
        labels = {label: name for name, label in config.labels.items()}
    return open_data(
        config.data,
        split,
        pixel_resizing(model),
        config.image_cache_gib,
        config.strict,
        config.val_fraction,
        labels,
        config.evaluator,
    )


def with_data_of(run: Config, config: Config) -> Config:
    """``config`` with the data of a run, and its division into splits, where it does not give them itself."""
    fields = {"data", "val_fraction"} - config.model_fields_set
    return config.model_copy(update={name: getattr(run, name) for name in fields})


def config_of_run(folder: Path) -> Config | None:
    """Settings of the run that recovered the detector in ``folder``; ``None`` for a folder outside a run."""
    from autoprune.run.documents import load_run_config

    file = folder.absolute().parent.parent / CONFIG_FILE
    return (
        load_run_config(file)
        if folder.absolute().parent.name == RECOVERED_FOLDER and file.is_file()
        else None
    )
