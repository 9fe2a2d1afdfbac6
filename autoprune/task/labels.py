"""The labels of the data, checked against the weights: classes of the head, and names that these carry."""

from collections import Counter
from collections.abc import Mapping

from torch import nn

from autoprune.config import Config, ModelSpec
from autoprune.data.annotations import read_source
from autoprune.data.coco import Split
from autoprune.data.labels import Categories, as_option, default_labels, describe, find_root
from autoprune.data.train_labels import TRAIN
from autoprune.detectors import load_dense
from autoprune.detectors.class_heads import depends_on_classes
from autoprune.detectors.class_names import class_names
from autoprune.errors import ConfigError, DataError
from autoprune.layouts.find import find_source
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
        names: Names = _given(config.labels, split, config)
    elif stored:
        return stored
    else:
        carried = class_names(config.weights, config.model, classes, config.model_arguments)
        names = _named(split, carried) or _counted(split, classes)
    if (largest := max(names)) >= classes:
        raise ConfigError(
            f"num_classes: {classes} is too few, the labels of the data ({describe(names)}) need "
            f"{largest + 1} with the background; give --data with the detector's own classes, or "
            f"--labels NAME=LABEL,… (YAML: labels){_hint(names, split, classes)}"
        )
    return names


def _hint(names: Names, split: Split, classes: int) -> str:
    """The labels that would fit the head exactly, and when they are right; empty where there are none."""
    with_boxes = [name for label, name in sorted(names.items()) if _boxes(split, label)]
    if len(with_boxes) + 1 == classes and len(with_boxes) < len(names):
        fitting = as_option(dict(enumerate(with_boxes, 1)))
        return f"; if categories without boxes are no classes, give --labels {fitting}"
    if sorted(names) == list(range(1, classes + 1)):
        fitting = as_option({label - 1: name for label, name in names.items()})
        return f"; if its labels count from 0, give --labels {fitting}"
    return ""


def _boxes(split: Split, label: int) -> bool:
    return bool(split.coco.catToImgs.get(split.category_ids.get(label)))


def _given(labels: Mapping[str, int], split: Split, config: Config) -> Names:
    known = _category_names(split.coco.cats)
    if split.name != TRAIN and not known.issuperset(labels):
        try:  # the training split may list more
            source = find_source(config.data, TRAIN, config.val_fraction)
            known |= _category_names(read_source(source).coco.cats)
        except DataError as error:
            say(f"labels are compared with the categories of {split.name} alone: {error}")
    unknown = [name for name in labels if name not in known]
    if unknown:
        raise ConfigError(
            f"labels: the data has no category {unknown[0]!r}; it has {', '.join(sorted(known))}"
        )
    return {label: name for name, label in labels.items()}


def _category_names(listed: Categories) -> set[str]:
    return {str(record["name"]) for record in listed.values()}


def _counted(split: Split, classes: int) -> Names:
    """The labels that the data suggests, or those that fit the head exactly.

    These are the ids with or without a category 0 or the root, or else the positions of the ids.
    """
    listed, used = split.coco.cats, {number for number, images in split.coco.catToImgs.items() if images}
    options: list[Names] = [split.categories, default_labels(listed, (), with_root=True).names]
    if 0 not in used and len(listed) > 1 and min(listed) == 0:
        options.append({number: record["name"] for number, record in listed.items() if number})
    roots = {number for number in listed if find_root(listed, used, number) is not None}
    classes_only = {
        label: name for label, name in split.categories.items() if split.category_ids.get(label) not in roots
    }
    options.append(classes_only)
    options += [
        dict(enumerate((name for _, name in sorted(names.items())), 1))
        for names in (split.categories, classes_only)
    ]
    return next((names for names in options if max(names, default=0) + 1 == classes), split.categories)


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
