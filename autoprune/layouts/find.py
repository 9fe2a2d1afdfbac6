"""Looks at a folder or a file: which layout it has, which splits, and what a split's annotations say."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from autoprune.config import DataPaths
from autoprune.errors import DataError
from autoprune.layouts.coco import find_coco, find_single, single_file
from autoprune.layouts.source import HINT, UNDIVIDED, Content, Layout, Part, Source, files_in, in_any_case
from autoprune.layouts.voc import find_voc, read_voc
from autoprune.layouts.voc import label_files as voc_files
from autoprune.layouts.yolo import find_yolo, read_yolo
from autoprune.layouts.yolo import label_files as yolo_files
from autoprune.layouts.yolo_yaml import YAML, yaml_layout

LAYOUTS: tuple[Callable[[Path], list[Layout]], ...] = (find_coco, find_yolo, find_voc)
"""What looks for the readings of a folder."""
TRAINED = ("train", "val")


def find_layout(data: Path) -> Layout:
    """The one reading of a folder, of YOLO's YAML file, or of a COCO JSON file.

    Raises:
        DataError: it has none, or several, which are named.
    """
    try:
        if data.is_file():
            if data.suffix.lower() in YAML:
                return yaml_layout(data)
            if data.suffix.lower() == ".json":
                return single_file(data)
            raise DataError(f"{data} is neither a folder, a COCO .json file nor a YOLO data.yaml; {HINT}")
        if not data.is_dir():
            raise DataError(f"no data folder {data}; {HINT}")
        readings = _readings(data)
        inner = [path for path in sorted(data.iterdir()) if path.is_dir()] if not readings else []
        readings = readings or [
            layout for path in inner for layout in _readings(path)
        ]  # as archives are unpacked
        readings = readings or find_single(data, anywhere=True)
    except OSError as error:
        raise DataError(
            f"cannot read {error.filename}: {error.strerror}; check --data (YAML: data)"
        ) from error
    if not readings:
        unnamed = "; its labels/ need data.yaml or classes.txt" if (data / "labels").is_dir() else ""
        if (file := in_any_case(data / "data.yaml")).is_file():
            unnamed = f"; {file.name} has none of the keys train and val, which it needs beside names"
        raise DataError(
            f"{data} has no annotations/instances_val.json, and no other layout of COCO, YOLO or Pascal "
            f"VOC{unnamed}; {HINT}"
        )
    if len(readings) > 1:
        named = " or ".join(f"{layout.name} ({layout.evidence})" for layout in readings)
        raise DataError(
            f"{data} could be {named}; move what is not meant elsewhere, or give --data (YAML: data) the "
            "file or folder that is"
        )
    return readings[0]


def _readings(folder: Path) -> list[Layout]:
    if folder.name == "annotations" and any(
        file.stem.startswith("instances_") for file in files_in(folder, ".json")
    ):
        return [layout for layout in find_coco(folder.parent) if layout.evidence.parent == folder]
    return [layout for look in LAYOUTS for layout in look(folder)] or find_single(folder)


def find_source(data: Path | DataPaths, split: str, val_fraction: float | None = None) -> Source:
    """Where one split of a data set is.

    Args:
        data: see `find_layout`, or explicit paths.
        split: ``train``, ``val``, ``test``, another of the data set, or ``all`` of one that is not divided.
        val_fraction: fraction of the images to validate on, where there is no validation split.

    Raises:
        DataError: there is no such split, it needs ``val_fraction``, or that would do nothing.
    """
    if isinstance(data, DataPaths):
        return _explicit(data, split, val_fraction)
    layout = find_layout(data)
    splits = layout.splits
    if val_fraction is not None and "val" in splits:
        raise DataError(
            f"val_fraction: {data} has a validation split, {splits['val'].listing or splits['val'].file}; "
            "omit --val-fraction"
        )
    whole = tuple(splits[name] for name in (*TRAINED, UNDIVIDED) if name in splits) or tuple(splits.values())
    undivided = splits.get("train", splits.get(UNDIVIDED))
    part: Part | None = None
    if val_fraction is not None and undivided is not None and split in TRAINED:
        source, part = undivided, Part("val" if split == "val" else "train", val_fraction)
    elif split in splits:
        source = splits[split]
    else:
        raise DataError(_missing(data, layout, split))
    return replace(source, part=part, whole=whole)


def _missing(data: Path, layout: Layout, split: str) -> str:
    place = (
        f"{data} ({layout.name}: {os.path.relpath(layout.evidence, data if data.is_dir() else data.parent)})"
    )
    divides = "--val-fraction 0.2 (YAML: val_fraction) divides it by a hash of file names, always alike"
    if UNDIVIDED in layout.splits:
        if split in TRAINED:
            return f"{place} is not divided into train and val; {divides}; --split all evaluates on all of it"
        return (
            f"{place} is not divided, so it has no split {split!r}; give --split all, or --val-fraction 0.2"
        )
    known = ", ".join(sorted(layout.splits))
    if split == "val" and "train" in layout.splits:
        return f"{place} has no validation split: it has {known}; {divides}"
    return f"{place} has no split {split!r}, as no annotations/instances_{split}.json: it has {known}; {HINT}"


def _explicit(data: DataPaths, split: str, val_fraction: float | None) -> Source:
    given = dict(data)
    if split not in given:
        raise DataError(
            f"the YAML field data has the splits {', '.join(given)}, and no {split!r}; add that to data, "
            "with its `annotations` and `images`"
        )
    if val_fraction is not None:
        raise DataError("val_fraction: the YAML field data has its own split val; omit --val-fraction")
    for path in (given[split].annotations, given[split].images):
        if not path.exists():
            raise DataError(f"{path} does not exist; check data.{split} in the YAML file")
    sources = {name: Source(paths.annotations, (paths.images,)) for name, paths in given.items()}
    source = sources[split]
    return Source(source.file, source.folders, whole=tuple(sources[name] for name in TRAINED))


def convert(source: Source) -> Content:
    """The annotations of another layout than COCO JSON as its content; errors as `read_yolo`, `read_voc`."""
    return read_yolo(source) if source.kind == "yolo" else read_voc(source)


def stamp(source: Source) -> Any:
    """What changes when the annotations of a split do.

    Raises:
        DataError: the annotation file can't be read.
    """
    try:
        times = [source.file.stat().st_mtime_ns]
        if source.kind != "coco":
            files = yolo_files(source) if source.kind == "yolo" else voc_files(source)
            times.append(hash(tuple((str(file), file.stat().st_mtime_ns) for file in files)))
    except OSError as error:
        place = error.filename or source.file
        raise DataError(f"cannot read {place}: {error.strerror}; check --data (YAML: data)") from error
    return tuple(times)
