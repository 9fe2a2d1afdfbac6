"""Looks for the folder of a COCO file's images where it has no name that is expected."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from autoprune.errors import DataError
from autoprune.images.locate import find_image
from autoprune.layouts.source import Source

SHOWN = 3
"""Folders that a message names."""

Records = Sequence[Mapping[str, Any]]


def image_folders(source: Source, records: Records) -> tuple[tuple[Path, ...], list[str]]:
    """The folders of a split's images, and a line that says so where they are not the expected ones.

    Where none of the images is in the expected folders, the one folder below ``source.roots`` that holds all
    of them is taken: first by their very names, then by the other readings of these.

    Args:
        source: the split.
        records: of `records.clean.ImageList`.

    Raises:
        DataError: several folders hold all images.
    """
    names = [str(record["file_name"]) for record in records]
    if not names or any(find_image(name, source.folders)[0] is not None for name in names):
        return source.folders, []
    for find in (_by_name, _by_end):
        for root in source.roots:
            folders = _holding_all(root, names, find)
            if len(folders) > 1:
                shown = " and ".join(map(str, folders[:SHOWN])) + (" and others" if folders[SHOWN:] else "")
                raise DataError(
                    f"{source.file}: {shown} each hold all {len(names)} images that it lists; move what is "
                    "not meant elsewhere, or give annotations and images of each split in YAML (data: "
                    "{train: {annotations: FILE, images: FOLDER}, …})"
                )
            if folders:
                line = (
                    f"images are taken from {folders[0]}, the one folder below {root} that holds all of them"
                )
                return tuple(folders), [line]
    return source.folders or source.roots, []


def folders_below(root: Path) -> Iterator[Path]:
    """A folder and all in it, over links too, each once; without hidden ones."""
    seen = {os.path.realpath(root)}
    for place, inner, _ in os.walk(root, followlinks=True):
        yield Path(place)
        kept = []
        for name in sorted(inner):
            real = os.path.realpath(os.path.join(place, name))
            if not name.startswith(".") and real not in seen:
                seen.add(real)
                kept.append(name)
        inner[:] = kept


def _by_name(name: str, folder: Path) -> Path | None:
    path, is_exact = find_image(name, (folder,))
    return path if is_exact else None


def _by_end(name: str, folder: Path) -> Path | None:
    return find_image(name, (folder,))[0]


def _holding_all(root: Path, names: Sequence[str], find: Callable[[str, Path], Path | None]) -> list[Path]:
    """The folders below a root in which all images are found; of several with the same files the first."""
    by_files: dict[tuple[Path, ...], Path] = {}
    for folder in folders_below(root):
        files = []
        for name in names:
            if (file := find(name, folder)) is None:
                break
            files.append(file)
        if len(files) == len(names):
            by_files.setdefault(tuple(files), folder)
    return list(by_files.values())
