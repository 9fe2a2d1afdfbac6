"""The labels of the data, checked against the weights: classes of the head, and names that these carry."""

from collections import Counter
from collections.abc import Mapping

from torch import nn

from autoprune.config import Config, ModelSpec
from autoprune.data.coco import Split
from autoprune.data.labels import as_option, default_labels, describe
from autoprune.data.train_labels import TRAIN
from autoprune.detectors import load_dense
from autoprune.detectors.class_names import class_names
from autoprune.detectors.weights import depends_on_classes
from autoprune.errors import ConfigError
from autoprune.progress import say

Names = Mapping[int, str]
"""Name of each label."""


def load_labeled(config: Config, split: Split) -> tuple[nn.Module, ModelSpec, Names]:
    """Loads the dense detector with the head that its weights have, and the labels that it gives.

    Args:
        config: names the detector and its weights.
        split: images with the labels that the data itself suggests.

    Raises:
        ConfigError: the head has too few classes for the labels, ``num_classes`` is not that of the weights,
            or the weights name other classes than the data.
        ModelError: the detector can't be built, or the weights are another architecture's.
    """
    model, spec = load_dense(
        config.model,
        config.model_arguments,
        None,
        config.norm_kind,
        config.weights,
        config.seed,
        config.weights_key,
    )
    needed = config.num_classes or split.num_classes
    if spec.num_classes != needed and not depends_on_classes(spec, model):
        spec = spec.model_copy(update={"num_classes": needed})  # its factory decides the classes
    elif config.num_classes not in (None, spec.num_classes):
        raise ConfigError(
            f"num_classes: {config.weights} has {spec.num_classes} classes with the background, not "
            f"{config.num_classes}; omit --num-classes (YAML: num_classes)"
        )
    names = agreed_labels(split, config, spec.num_classes)
    return model, spec, names


def agreed_labels(split: Split, config: Config, classes: int, stored: Names | None = None) -> Names:
    """The name of each label: the user's, those stored with the detector, those that fit the weights.

    Args:
        split: images with the labels that the data itself suggests.
        config: the user's ``labels``, and the weights.
        classes: of the detector's head, background included.
        stored: labels in the policy of the detector.

    Raises:
        ConfigError: the head has too few classes, or names are unknown.
    """
    if config.labels is not None:
        names: Names = _given(config.labels, split)
    elif stored:
        return stored
    else:
        carried = class_names(config.weights, config.model, classes)
        names = _named(split, carried) or _counted(split, classes)
    if (largest := max(names)) >= classes:
        fewer = {label - min(names): name for label, name in names.items()}
        hint = (
            f"; if its labels count from 0, give --labels {as_option(fewer)}" if max(fewer) < classes else ""
        )
        raise ConfigError(
            f"num_classes: {classes} is too few, the labels of the data ({describe(names)}) need "
            f"{largest + 1} with the background; give --data with the detector's own classes, or "
            f"--labels NAME=LABEL,… (YAML: labels){hint}"
        )
    return names


def _given(labels: Mapping[str, int], split: Split) -> Names:
    known = {str(record["name"]) for record in split.coco.cats.values()}
    unknown = [name for name in labels if name not in known]
    if unknown and split.name == TRAIN:  # other splits may list less
        raise ConfigError(
            f"labels: the data has no category {unknown[0]!r}; it has {', '.join(sorted(known))}"
        )
    return {label: name for name, label in labels.items()}


def _counted(split: Split, classes: int) -> Names:
    """The labels that the data suggests, or those with or without category 0 that fit the head exactly."""
    listed, unused = split.coco.cats, not split.coco.catToImgs.get(0)
    options: list[Names] = [split.categories, default_labels(listed, (), with_root=True).names]
    if unused and len(listed) > 1 and min(listed) == 0:
        options.append({number: record["name"] for number, record in listed.items() if number})
    return next((names for names in options if max(names) + 1 == classes), split.categories)


def _named(split: Split, carried: Names) -> Names:
    """The labels by the names that the weights carry; none where these know nothing of the data."""
    by_name = {name.strip().lower(): label for label, name in carried.items()}
    boxes = Counter(thing["category_id"] for thing in split.coco.anns.values())
    listed = {number: str(record["name"]) for number, record in split.coco.cats.items()}
    matched = {by_name[key]: name for name in listed.values() if (key := name.strip().lower()) in by_name}
    if not matched:
        if carried:
            say(f"the weights name their classes {describe(carried)}: none is a category of the data")
        return {}
    lacking = [name for number, name in listed.items() if boxes[number] and name not in matched.values()]
    if lacking:
        raise ConfigError(
            f"the weights have no class {lacking[0]!r}, they name {describe(carried)}; give --labels "
            f"NAME=LABEL,… for all categories (YAML: labels), or weights of these classes"
        )
    return dict(sorted(matched.items()))
