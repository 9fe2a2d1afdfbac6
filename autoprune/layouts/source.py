"""What a layout gives: the splits of a data set, and for each where its annotations and images are."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from autoprune.errors import DataError

HINT = (
    "give --data (YAML: data) a folder with annotations/instances_{train,val}.json and images/, "
    "or try `autoprune demo`, which makes its own"
)
UNDIVIDED = "all"
"""The split of a data set that is not divided into splits."""
SPLITS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""What tools call the splits → their names here."""

Content = dict[str, Any]
"""COCO's `images`, `annotations` and `categories`, and where a layout is converted:

`skipped`: what can't be converted; `notes`: what was decided for all; `folders`: where the images are.
"""


def files_in(folder: Path, suffix: str) -> list[Path]:
    """The files in a folder with a suffix, such as ``.txt``, in small letters or capitals; sorted."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.suffix.lower() == suffix and path.is_file())


def in_any_case(file: Path) -> Path:
    """A file as it is there: where there is none, its suffix may be in capitals, as in ``a.TXT``."""
    for suffix in (file.suffix, file.suffix.upper(), file.suffix.title()):
        if os.path.isfile(other := file.with_suffix(suffix)):  # which takes a name that is too long
            return other
    return file


class Part(NamedTuple):
    """One of two parts that a hash of the images' file names divides a data set into."""

    name: Literal["train", "val"]
    fraction: float


@dataclass(frozen=True)
class Source:
    """Where one split is.

    Attributes:
        file: the annotations: a COCO JSON file, YOLO's YAML or list of names, or a folder of VOC's XML.
        folders: where images are looked for, in this order; of YOLO, what holds or lists them.
        kind: how ``file`` is read.
        listing: the text file that names the split's images, where Pascal VOC has one.
        part: which part of it, where a hash divides it.
        roots: where else to look for the folder of the images, in this order, where ``folders`` hold none.
        whole: all splits that are trained or validated on, of which the set's own properties are found.
    """

    file: Path
    folders: tuple[Path, ...]
    kind: Literal["coco", "yolo", "voc"] = "coco"
    listing: Path | None = None
    part: Part | None = None
    roots: tuple[Path, ...] = ()
    whole: tuple["Source", ...] = field(default=(), repr=False)


class Layout(NamedTuple):
    """One reading of a folder or file.

    Attributes:
        name: of the layout, such as ``YOLO``.
        evidence: the file or folder that shows it.
        splits: by name; `UNDIVIDED` alone where the set is not divided.
    """

    name: str
    evidence: Path
    splits: Mapping[str, Source]


def each_once(sources: Iterable[tuple[str, str, Source]], folder: Path) -> dict[str, Source]:
    """The splits by their names.

    Args:
        sources: the name of each, the file, folder or key that stands for it, and where it is.
        folder: of the data set, or its YAML file, for the message.

    Raises:
        DataError: two stand for the same split, so it is open which one is meant.
    """
    splits: dict[str, Source] = {}
    named: dict[str, str] = {}
    for split, what, source in sources:
        if (first := named.setdefault(split, what)) != what:
            raise DataError(f"{folder}: {first} and {what} are both for {split}; move one of them away")
        splits[split] = source
    return splits


def evidence_of(splits: Mapping[str, Source]) -> Source:
    """The split whose file shows a layout: that of training, else of validation, else the first."""
    return next(splits[name] for name in ("train", "val", *splits) if name in splits)


def split_of(name: str) -> str | None:
    """The split that a folder, a key or the middle of a file name stands for: ``Valid`` is ``val``."""
    return SPLITS.get(name.casefold())
