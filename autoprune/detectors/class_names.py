"""The names of the classes that weights carry, where they do: by label, background included."""

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from os.path import isfile  # which takes a name that is too long for one of no file
from pathlib import Path
from typing import Any

from autoprune.checkpoints.read import read_checkpoint
from autoprune.detectors.weights import published_weights
from autoprune.errors import ModelError
from autoprune.fields import is_vendor
from autoprune.vendors import described

LABELS = "labels"
"""Key of the header of a safetensors file: a JSON mapping of label to name."""
KEYS = (LABELS, "categories", "class_names", "classes", "names", "CLASSES", "id2label")
"""Where checkpoints hold names: at their top, or in one of `PARTS`."""
PARTS = ("meta", "dataset_meta", "hyper_parameters", "config", "args")
BACKGROUND = ("__background__", "background", "bg")
NO_CLASS = ("n/a", "")
LONGEST_HEADER = 2**26  # bytes; safetensors itself refuses larger ones


def class_names(
    weights: str | None, model_name: str, num_classes: int, arguments: Mapping[str, Any] | None = None
) -> dict[int, str]:
    """The name of each label; empty where the weights carry none that fit the number of classes.

    Args:
        weights: a .safetensors or .pt file, a vendor's file or folder, or a torchvision weight name.
        model_name: the detector that they are for; a vendor's names count where the weights have none.
        num_classes: of its head, background included.
        arguments: of its builder.
    """
    carried = {} if weights is None else names_in(weights, model_name, num_classes)
    if carried or not is_vendor(model_name):
        return carried
    return _by_label(described(model_name, arguments or {})[1].names, num_classes)


def names_in(weights: str, model_name: str, num_classes: int) -> dict[int, str]:
    """As `class_names`, from the weights alone, whatever a vendor says of the detector."""
    if is_vendor(model_name):
        return _of_vendor(weights, model_name, num_classes)
    if not isfile(weights):
        try:
            return _by_label(published_weights(weights, model_name).meta.get("categories"), num_classes)
        except ModelError:  # whoever loads them says what is wrong
            return {}
    return _of_file(Path(weights), num_classes)


def names_held(content: Any, num_classes: int) -> dict[int, str]:
    """As `class_names`, from what a checkpoint holds."""
    named = (_by_label(names, num_classes) for names in _candidates(content))
    return next((names for names in named if names), {})


def renamed(stored: Mapping[int, str], carried: Mapping[int, str]) -> Mapping[int, str]:
    """The names that weights carry where they name other classes than are stored for the same labels.

    Args:
        stored: name of each label of a policy; other weights may have the same classes in another order.
        carried: names in the weights, of which bare indices, a library's own defaults, say nothing.
    """
    if all(name == str(label - 1) for label, name in carried.items()):
        return stored
    same = all(
        carried.get(label, name).strip().lower() == name.strip().lower() for label, name in stored.items()
    )
    return stored if same and stored else carried


def header_of(names: Mapping[int, str]) -> dict[str, str] | None:
    """The header of a safetensors file that carries these names."""
    return {LABELS: json.dumps({str(label): name for label, name in names.items()})} if names else None


def _of_vendor(weights: str, model_name: str, num_classes: int) -> dict[int, str]:
    """The names in a vendor's own file or folder, which only the vendor can read, or in any other file."""
    if not weights.endswith(".safetensors"):
        with suppress(ModelError):  # a file without its architecture
            library = model_name.partition(":")[0]
            if names := _by_label(described(f"{library}:{weights}", {})[1].names, num_classes):
                return names
    return _of_file(Path(weights), num_classes) if isfile(weights) else {}


def _of_file(file: Path, num_classes: int) -> dict[int, str]:
    if file.suffix == ".safetensors":
        return _header(file, num_classes)
    return names_held(_checkpoint(file), num_classes)


def _header(file: Path, num_classes: int) -> dict[int, str]:
    """What `header_of` wrote."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            metadata = json.loads(stream.read(length) if length <= LONGEST_HEADER else b"").get(
                "__metadata__"
            )
            labels = {int(label): str(name) for label, name in json.loads(metadata[LABELS]).items()}
            return labels if max(labels) < num_classes else {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}  # no names, or no safetensors file, which whoever loads it says


def _checkpoint(file: Path) -> Any:
    try:
        return read_checkpoint(file, device="meta")
    except ModelError:  # whoever loads it says what is wrong
        return {}


def _candidates(content: Any, depth: int = 0) -> Iterator[Any]:
    if not isinstance(content, Mapping):
        return
    yield from (content[key] for key in KEYS if key in content)
    for part in PARTS:
        if depth < 2 and part in content:
            yield from _candidates(content[part], depth + 1)


def _by_label(names: Any, num_classes: int) -> dict[int, str]:
    """Names by label, from a list, a mapping in either direction or COCO's records; empty where none fit."""
    if isinstance(names, list) and names and all(isinstance(each, Mapping) for each in names):
        names = {each.get("id"): each.get("name") for each in names}
    if isinstance(names, Mapping):
        if names and all(isinstance(value, int) for value in names.values()):
            names = {value: key for key, value in names.items()}
        try:
            pairs = sorted((int(key), value) for key, value in names.items())
        except (TypeError, ValueError):
            return {}
        if [label for label, _ in pairs] == list(range(len(pairs))):
            names = [value for _, value in pairs]
        else:
            return _plain(dict(pairs)) if pairs and pairs[0][0] >= 0 and pairs[-1][0] < num_classes else {}
    if not isinstance(names, list | tuple) or len(names) not in (num_classes, num_classes - 1):
        return {}
    return _plain(dict(enumerate(names, num_classes - len(names))))


def _plain(names: Mapping[int, Any]) -> dict[int, str]:
    """Without the background and placeholders; empty where a name is none."""
    if not all(isinstance(name, str) for name in names.values()):
        return {}
    dropped = (*BACKGROUND, *NO_CLASS)
    return {label: name for label, name in names.items() if name.strip().lower() not in dropped}
