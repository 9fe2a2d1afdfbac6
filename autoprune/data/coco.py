"""A split of a data set: resized images, kept in memory while they fit, and their boxes as COCO's."""

import copy
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from autoprune.config import DataPaths
from autoprune.data.annotations import Annotations, read_source
from autoprune.data.evaluators import GroundTruth
from autoprune.data.labels import describe
from autoprune.data.train_labels import TRAIN, labels_of, labels_of_train
from autoprune.errors import DataError
from autoprune.fields import Evaluator
from autoprune.images.batch import Target, make_sample, to_batch
from autoprune.images.decode import UPRIGHT, decode, resized_size
from autoprune.images.kept import KeptImages, Memory
from autoprune.images.node_images import node_images
from autoprune.layouts.find import find_source
from autoprune.progress import say
from autoprune.resize import Resizing

GIB = 2**30
SHOWN = 5
"""Skipped images and annotations that a message names."""


def open_data(
    data: Path | DataPaths,
    split: str,
    resize: Resizing = None,
    cache_gib: float = 2.0,
    strict: bool = False,
    val_fraction: float | None = None,
    labels: Mapping[int, str] | None = None,
    evaluator: Evaluator = "hotcoco",
    scope: str | None = None,
) -> "Split":
    """Opens one split.

    Args:
        data: a folder of COCO, YOLO or Pascal VOC data (see `layouts.find`), YOLO's YAML file, a COCO JSON
            file, or explicit paths.
        split: ``train``, ``val``, ``test``, another of the data set, or ``all`` of one that is not divided.
        resize: the detector's, see `resize.pixel_resizing`; ``None`` keeps the stored size.
        cache_gib: memory for resized images; those beyond it are decoded at each use.
        strict: refuse data with images or annotations that can't be used, instead of skipping those.
        val_fraction: fraction of the images to validate on, where the data has no validation split.
        labels: name of each label; ``None`` takes those of the split ``train``, so that all splits agree.
        evaluator: library that runs COCOeval.
        scope: names the run whose processes keep decoded images together where they are on one machine (see
            `images.node_images`); ``None`` keeps them in this process.

    Raises:
        DataError: the data is missing, has no layout or several, has boxes of a category without a label, or
            ``strict`` found something unusable.
    """
    source = find_source(data, split, val_fraction)
    file, annotations = source.file, read_source(source)
    for note in annotations.notes:
        say(f"{file}, {split}: {note}")
    if annotations.skipped:
        count, first = len(annotations.skipped), "; ".join(annotations.skipped[:SHOWN])
        entries = "1 entry" if count == 1 else f"{count} entries"
        if strict:
            raise DataError(f"{file}: {entries} cannot be used: {first}; fix them or omit --strict")
        more = "; …" if count > SHOWN else ""
        say(f"{file}: skipped {entries} that cannot be used: {first}{more}")
    if labels is None and split != TRAIN:
        labels = labels_of_train(data, annotations, val_fraction)
    try:
        return Split(split, annotations, resize, cache_gib, labels, evaluator, scope)
    except DataError as error:
        raise DataError(f"{file}: {error}") from error


def check_same_classes(first: "Split", second: "Split") -> None:
    """Refuses two splits whose labels mean different things.

    Raises:
        DataError: their categories differ.
    """
    if first.categories == second.categories:
        return
    differing = sorted(set(first.categories.items()) ^ set(second.categories.items()))
    raise DataError(
        f"{first.name} and {second.name} list different categories (such as {differing[0][1]!r}, label "
        f"{differing[0][0]}); give both annotation files the same list"
    )


def absent_classes(split: "Split", images: int | None = None) -> list[str]:
    """Names of the classes without a box, crowds aside, in the first ``images`` images (``None``: all)."""
    seen = {
        thing["category_id"]
        for number in split.image_ids[:images]
        for thing in split.coco.imgToAnns.get(number, ())
        if not thing["iscrowd"]
    }
    return [name for label, name in split.categories.items() if split.category_ids.get(label) not in seen]


class Split:
    """Images and boxes of one split, by the index of the image.

    Attributes:
        name: ``train``, ``val``, ``test``, another of the data set, or ``all`` of one that is not divided.
        coco: pycocotools' index of the usable entries; boxes in pixels of the images before resizing.
        categories: name of each label; see `labels.default_labels`.
        category_ids: category id of each label that the split's file lists.
        left_out: id and name of each category without a label.
        num_classes: largest label plus one, for the background.
        image_ids: COCO's id of each image.
        files: path of each image.
        sizes: (height, width) of each image after resizing.
        stored_sizes: (height, width) of each image in the pixels of its boxes, before resizing.
        views: how to see an image file's pixels, by index, where that is not upright as they are.
        evaluator: the library that runs COCOeval.
        truth: the boxes as that library indexes them.
        skipped: the skipped entries, one line each.
        notes: what was decided for the images or boxes together, or read in another way than it is written,
            one line for each kind.
    """

    def __init__(
        self,
        name: str,
        annotations: Annotations,
        resize: Resizing,
        cache_gib: float,
        labels: Mapping[int, str] | None = None,
        evaluator: Evaluator = "hotcoco",
        scope: str | None = None,
    ) -> None:
        self.name = name
        self.coco = annotations.coco
        self.skipped = list(annotations.skipped)
        self.notes = list(annotations.notes)
        self._set_labels(labels)
        self.image_ids = list(annotations.files)
        self.files = list(annotations.files.values())
        places = {number: index for index, number in enumerate(self.image_ids)}
        self.views = {places[number]: view for number, view in annotations.views.items()}
        self.stored_sizes = [annotations.sizes[number] for number in self.image_ids]
        self.evaluator = evaluator
        self.truth = GroundTruth(self.coco)
        self._scope, self._limit = scope, int(cache_gib * GIB)
        self._memory = Memory(self._limit)
        self._resize_by(resize)

    def _resize_by(self, resize: Resizing) -> None:
        self.sizes = [resized_size(size, resize) for size in self.stored_sizes]
        self._resize = resize
        pixels = f"{self._scope} {self.files} {self.views} {self.sizes}"
        node = None if self._scope is None else partial(node_images, pixels, self.sizes, self._limit)
        self._kept = KeptImages(self._memory, node)

    def _set_labels(self, names: Mapping[int, str] | None) -> None:
        own = labels_of(self.coco, names)
        self.categories, self.category_ids = own.names, own.category_ids
        self.left_out = {number: str(self.coco.cats[number]["name"]) for number in own.left_out}
        self.num_classes = max(self.categories) + 1
        self._label_of = {number: label for label, number in self.category_ids.items()}

    def relabeled(self, names: Mapping[int, str]) -> "Split":
        """The same images and boxes with other labels.

        Args:
            names: name of the category that each label stands for.

        Raises:
            DataError: a category with boxes has no label.
        """
        same = copy.copy(self)
        same._set_labels(names)
        return same

    def resized(self, resize: Resizing) -> "Split":
        """The same images and boxes at another size; both take the memory for images from one budget."""
        same = copy.copy(self)
        same._resize_by(resize)
        return same

    @property
    def labels_line(self) -> str:
        """One line that says which label stands for which category, and which categories have none."""
        left_out = "".join(
            f'; category {number} "{name}" has no boxes and is left out'
            for number, name in self.left_out.items()
        )
        return f"labels: {describe(self.categories)}{left_out}"

    def __len__(self) -> int:
        """Number of images."""
        return len(self.image_ids)

    @property
    def most_common_size(self) -> tuple[int, int]:
        """The most common (height, width) after resizing; the first of several."""
        return Counter(self.sizes).most_common(1)[0][0]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the usable images (names, sizes and bytes), their boxes and the classes, in order.

        Not of pixels, which take minutes to read, nor of the folder, which may be moved.
        """
        columns = {  # COCOeval adds others
            "images": ("id", "file_name", "height", "width"),
            "annotations": ("image_id", "category_id", "bbox", "area", "iscrowd"),
            "categories": ("id", "name"),
        }
        content: list[Any] = [
            [[entry[column] for column in columns[part]] for entry in self.coco.dataset[part]]
            for part in columns
        ]
        content.append([path.stat().st_size for path in self.files])  # other pixels have other sizes
        if self.views:
            content.append(sorted(self.views.items()))
        return sha256(json.dumps(content).encode()).hexdigest()

    def get(self, index: int) -> tuple[Tensor, Target]:
        """One image and its target.

        Returns:
            uint8 [3, height, width], never modified in place, and, without crowds, ``boxes`` float32 [n, 4]
            (x1, y1, x2, y2 in resized pixels, clipped to the image), ``labels`` int64 [n] and ``image_id``.

        Raises:
            DataError: the file can't be decoded.
        """
        (image,) = self._kept.take([index], self._decode)
        return image, self._target(index)

    def batch(
        self,
        indices: Sequence[int],
        device: torch.device | str = "cpu",
        flip: Sequence[bool] | None = None,
    ) -> tuple[list[Tensor], list[Target]]:
        """Several images and their targets, in the form of torchvision's detectors.

        Args:
            indices: indices of the images.
            device: device of the tensors.
            flip: for each image, whether it is mirrored left to right.

        Returns:
            Images, float32 [3, height, width] in [0, 1], and targets as from `get`.
        """
        mirrored = [False] * len(indices) if flip is None else flip
        images = zip(indices, self._kept.take(indices, self._decode), mirrored, strict=True)
        return to_batch([make_sample(image, self._target(i), mirror) for i, image, mirror in images], device)

    def _decode(self, index: int) -> Tensor:
        view = self.views.get(index, UPRIGHT)
        return decode(self.files[index], self.sizes[index], view, self._resize)

    def _target(self, index: int) -> Target:
        number, (height, width) = self.image_ids[index], self.stored_sizes[index]
        things = [thing for thing in self.coco.imgToAnns.get(number, ()) if not thing["iscrowd"]]
        boxes = np.array([thing["bbox"] for thing in things], np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        boxes = boxes.clip(0, [width, height] * 2)
        new_height, new_width = self.sizes[index]
        boxes *= [new_width / width, new_height / height] * 2
        labels = [self._label_of[thing["category_id"]] for thing in things]
        return {
            "boxes": torch.from_numpy(boxes.astype(np.float32)),
            "labels": torch.tensor(labels, dtype=torch.int64),
            "image_id": number,
        }
