"""The labels of a split: those of the training split, so that all splits of a data set agree."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from pycocotools.coco import COCO

from autoprune.config import DataPaths
from autoprune.data.annotations import Annotations, read_source
from autoprune.data.labels import Labels, default_labels, find_root, has_categories, labels_by_name
from autoprune.errors import DataError
from autoprune.layouts.find import find_source
from autoprune.progress import say

TRAIN = "train"
"""The split whose categories decide the labels of all."""


def labels_of(index: COCO, names: Mapping[int, str] | None = None) -> Labels:
    """The labels of a file.

    Args:
        index: pycocotools' index of it.
        names: name of each label; ``None`` takes `default_labels`.

    Raises:
        DataError: a category with boxes has none of the names.
    """
    if names is None:
        return default_labels(index.cats, {number for number, images in index.catToImgs.items() if images})
    return labels_by_name(names, index.cats, Counter(each["category_id"] for each in index.anns.values()))


def labels_of_train(
    data: Path | DataPaths, annotations: Annotations, val_fraction: float | None = None
) -> Mapping[int, str] | None:
    """Name of each label of the training split; ``None`` where that adds nothing to a split's own.

    Args:
        data: holds both splits.
        annotations: of the other split.
        val_fraction: as for `layouts.find.find_source`.
    """
    try:
        source = find_source(data, TRAIN, val_fraction)
    except DataError:
        return None
    categories = annotations.coco.cats
    if find_root(categories, ()) is None and has_categories(source.file, categories):
        return None
    try:
        names = labels_of(read_source(source).coco).names
        labels_of(annotations.coco, names)  # raises where they are others
    except DataError as error:
        say(f"labels are those of this split alone, and not of the training split: {error}")
        return None
    return names
