"""What a data set holds: its layout, the images, boxes and classes of its splits, and what is odd."""

import os
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import file_digest
from pathlib import Path

import numpy as np

from autoprune.config import DataPaths
from autoprune.data.coco import SHOWN, Split, absent_classes, open_data
from autoprune.errors import DataError
from autoprune.images.decode import UPRIGHT, decode, image_files, threads
from autoprune.layouts.find import find_layout
from autoprune.layouts.source import UNDIVIDED
from autoprune.progress import count_of

DECODED = 256
"""Images of a split, at most and evenly spread, that are decoded to see whether they are whole."""
TINY = (8, 8)
ORDER = {name: place for place, name in enumerate(("train", "val", "test"))}


@dataclass(frozen=True)
class Survey:
    """A data set at a glance.

    Attributes:
        layout: its name, with the file or folder that shows it.
        splits: the splits that can be read, by name.
        odd: what a user may want to look at, one line each.
    """

    layout: str
    splits: Mapping[str, Split]
    odd: tuple[str, ...]


def survey(data: Path | DataPaths, val_fraction: float | None = None) -> Survey:
    """Reads every split of a data set, and decodes up to `DECODED` images of each.

    Raises:
        DataError: it has no known layout, or several, or no split that can be read.
    """
    if isinstance(data, DataPaths):
        layout, names = "COCO files and folders of images, as the YAML field data gives them", [*dict(data)]
    else:
        reading = find_layout(data)
        layout, names = f"{reading.name} ({reading.evidence})", [*reading.splits]
    if val_fraction is not None:
        names = ["train", "val", *(name for name in names if name not in ("train", "val", UNDIVIDED))]
    splits: dict[str, Split] = {}
    problems: list[str] = []
    for name in sorted(names, key=lambda name: (ORDER.get(name, len(ORDER)), name)):
        try:
            splits[name] = open_data(data, name, cache_gib=0, val_fraction=val_fraction)
        except DataError as error:
            if len(names) == 1 or name in ("train", "val"):
                raise
            problems.append(f"{name} can't be read: {error}")
    if not splits:
        raise DataError("; ".join(problems))
    return Survey(layout, splits, (*problems, *_odd(splits)))


def box_counts(split: Split) -> dict[str, int]:
    """Boxes of each class, crowds aside, in the order of the labels."""
    counts = Counter(thing["category_id"] for thing in split.coco.anns.values() if not thing["iscrowd"])
    return {split.categories[label]: counts[number] for label, number in split.category_ids.items()}


def _odd(splits: Mapping[str, Split]) -> Iterator[str]:
    said: dict[str, list[str]] = {}  # of several splits, the same line once
    for name, split in splits.items():
        for line in _odd_in(split):
            said.setdefault(line, []).append(name)
    for line, names in said.items():
        yield line if names == [UNDIVIDED] else f"{', '.join(names)}: {line}"
    one = next(iter(splits))
    for name, split in splits.items():
        if split.categories != splits[one].categories:
            yield f"{name} and {one} have different classes"
    yield from _twice(splits)
    named = {Path(os.path.realpath(file)) for split in splits.values() for file in split.files}
    folders = {os.path.realpath(file.parent) for split in splits.values() for file in split.files}
    beside = [file for folder in sorted(folders) for file in image_files(Path(folder))]
    unnamed = [file for file in beside if Path(os.path.realpath(file)) not in named]
    if unnamed:
        yield f"in no split, but beside its images: {len(unnamed)}, such as {unnamed[0]}"


def _odd_in(split: Split) -> Iterator[str]:
    if split.skipped:
        first = "; ".join(split.skipped[:SHOWN]) + ("; …" if len(split.skipped) > SHOWN else "")
        yield f"left out as unusable, {len(split.skipped)} in all: {first}"
    yield from split.notes
    things = split.coco.anns.values()
    if crowds := sum(thing["iscrowd"] for thing in things):
        yield f"crowds, {crowds} of {len(things)} boxes: not trained on, and neither hit nor miss"
    if absent := absent_classes(split):
        yield f"no box of {', '.join(absent[:SHOWN])}{', …' if len(absent) > SHOWN else ''}"
    yield from _damaged(split)
    if empty := sum(not split.coco.imgToAnns.get(number) for number in split.image_ids):
        yield f"no boxes in {empty} of {len(split)} images"


def _damaged(split: Split) -> Iterator[str]:
    """Images that open and cannot be decoded, such as those that are cut off."""
    chosen = sorted({round(place) for place in np.linspace(0, len(split) - 1, min(DECODED, len(split)))})

    def problem(index: int) -> str | None:
        try:
            decode(split.files[index], TINY, split.views.get(index, UPRIGHT))
        except DataError as error:
            return str(error)
        return None

    with ThreadPoolExecutor(threads()) as pool:
        problems = [each for each in pool.map(problem, chosen) if each is not None]
    if problems:
        looked_at = (
            count_of(len(split), "image") if len(chosen) == len(split) else f"{len(chosen)} images looked at"
        )
        yield f"damaged: {len(problems)} of {looked_at}, first: {problems[0]}"


def _twice(splits: Mapping[str, Split]) -> Iterator[str]:
    """Images that two splits share, by their bytes."""
    by_size: dict[int, list[tuple[str, Path]]] = defaultdict(list)
    for name, split in splits.items():
        for file in split.files:
            by_size[file.stat().st_size].append((name, file))
    shared: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for group in by_size.values():
        if len({name for name, _ in group}) == 1:
            continue
        seen: dict[bytes, tuple[str, Path]] = {}
        for name, file in group:
            with file.open("rb") as content:
                digest = file_digest(content, "sha256").digest()
            earlier, original = seen.setdefault(digest, (name, file))
            if earlier != name:
                shared[earlier, name].append((original, file))
    for (one, other), pairs in shared.items():
        original, file = pairs[0]
        shown = original.name if original.name == file.name else f"{original.name} and {file.name}"
        yield f"the same images in {one} and {other}: {len(pairs)}, such as {shown}"
