"""The detectors that a user names on the command line: by name, by policy file, or by folder."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.config import Config, ModelSpec
from autoprune.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

    from autoprune.data.coco import Split
    from autoprune.policy import Policy

POLICY_FILE = "policy.yaml"


@dataclass(frozen=True)
class Named:
    """What one name on the command line stands for.

    Attributes:
        label: the name, short enough for a table.
        spec: the dense architecture.
        policy: what is kept of it; ``None`` for a dense detector.
        folder: where its recovered weights are, if it has any.
    """

    label: str
    spec: ModelSpec
    policy: "Policy | None" = None
    folder: Path | None = None


def find(what: str | None, config: Config) -> Named:
    """Reads what ``what`` stands for: a policy file, a folder with one, or the name of a dense detector.

    Raises:
        ConfigError: a path holds no policy.
        PolicyError: the policy can't be read.
    """
    from autoprune.policy import Policy

    path = Path(what) if what is not None else None
    if path is not None and (path.exists() or path.suffix in (".yaml", ".yml") or "/" in str(what)):
        folder = path if path.is_dir() else None
        file = path / POLICY_FILE if folder else path
        if folder and not file.is_file():
            raise ConfigError(
                f"{path} holds no {POLICY_FILE}; give a policy file, or a folder that `autoprune recover`, "
                "`export` or `apply` wrote"
            )
        policy = Policy.load(file)
        label = f"{path.parent.name}/{path.name}" if path.parent.name else path.name
        return Named(label, policy.model, policy, folder)
    name = what or config.model
    spec = ModelSpec(
        name=name,
        arguments=config.model_arguments,
        num_classes=config.num_classes or 91,
        norm="frozen" if config.norm == "freeze" else "batch",
    )
    return Named(name, spec)


def build_dense(named: Named, config: Config) -> "tuple[nn.Module, ModelSpec]":
    """Builds the dense detector of ``named``, with the weights of ``config`` where it has any.

    Raises:
        ModelError: it can't be built, or the weights are of another architecture.
    """
    from autoprune.detectors import load_dense

    if named.policy is not None:  # a policy decides the whole architecture
        spec = named.policy.model
        return load_dense(spec.name, spec.arguments, spec.num_classes, spec.norm, config.weights)
    return load_dense(
        named.spec.name, config.model_arguments, config.num_classes, config.norm_kind, config.weights
    )


def input_size_of(named: Named, model: "nn.Module", config: Config) -> tuple[int, int]:
    """Height and width to count at: the user's, the policy's, or a square of the detector's own size."""
    from autoprune.detectors import resize_rule

    if config.input_size is not None:
        return config.input_size
    if named.policy is not None:
        return named.policy.input_size
    rule = resize_rule(model)
    if rule is None or (rule.fixed is None and rule.min_size is None):
        raise ConfigError(
            f"{named.label} does not say at what size it works; give --input-size (YAML: input_size)"
        )
    return rule.fixed or (rule.min_size or 0, rule.min_size or 0)


def open_split(config: Config, split: str, model: "nn.Module") -> "Split":
    """Opens one split of the data at the size that ``model`` works at.

    Raises:
        DataError: the data is missing or is not in COCO format.
    """
    from autoprune.data.coco import open_data
    from autoprune.detectors import resize_rule

    return open_data(config.data, split, resize_rule(model), config.image_cache_gib, config.strict)


def run_of(folder: Path) -> Config | None:
    """Settings of the run that recovered the detector in ``folder``; ``None`` for a folder of its own."""
    from autoprune.config import load_config

    file = folder.absolute().parent.parent / "config.yaml"
    return load_config(file) if folder.absolute().parent.name == "recovered" and file.is_file() else None
