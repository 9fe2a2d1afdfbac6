"""What a checkpoint of LibreYOLO, or one that it converts, says of its detector."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from libreyolo import LibreDEIM, LibreDFINE, LibreRTDETR, LibreRTMDet, LibreYOLO9, LibreYOLOX
from torch import Tensor

from autoprune.errors import ModelError
from autoprune.progress import say

FAMILIES: dict[str, Any] = {
    "yolox": LibreYOLOX,
    "yolo9": LibreYOLO9,
    "rtdetr": LibreRTDETR,
    "dfine": LibreDFINE,
    "deim": LibreDEIM,
    "rtmdet": LibreRTMDet,
}
"""LibreYOLO's classes of the kinds that are supported, by its own names of them."""
MOST_CLASSES = 65_536
TOWERS = "head.cv3.0.0.conv.weight"
"""Of YOLO9: the first layer of the class towers, whose width depends on the classes of the first training."""
TRAINING_ONLY = re.compile(r"^(aux|aux_head|data_preprocessor)\.|^decoder\.(anchors|valid_mask)$")
"""Tensors of checkpoints that a network does not have here: branches of trainings, tables it computes."""


def described_in(content: Any, path: Path) -> tuple[dict[str, Any], int, dict[int, str]]:
    """Arguments, number of classes and their names, from what LibreYOLO wrote beside the weights.

    Raises:
        ModelError: the file is of another task, kind or input, or says too little.
    """
    said: Mapping[str, Any] = content if isinstance(content, Mapping) else {}
    states = list(_states(converted(content)))
    family = said.get("model_family") or next((kind for _, kind in states if kind), None)
    if family == "dfine" and not said.get("model_family") and "deim" in path.name.lower():
        family = "deim"  # with the same tensors
    if family not in FAMILIES:
        what = "holds no weights of" if family is None else f"holds a {family}, not"
        raise ModelError(f"{path} {what} a kind of LibreYOLO that is supported: {listed(FAMILIES)}")
    if (task := said.get("task", "detect")) != "detect":
        raise ModelError(f"{path} is for the task {task}; give a checkpoint of a detector")
    if said.get("quant") or said.get("input_profile"):
        raise ModelError(
            f"{path} is quantized, or not for RGB images; give the float checkpoint of a detector"
        )
    if said.get("imgsz_h", 0) != said.get("imgsz_w", 0):
        shape = f"{said.get('imgsz_h')}x{said.get('imgsz_w')}"
        raise ModelError(f"{path} is for images of {shape}; only squares are supported")
    library = FAMILIES[family]
    state = next((state for state, kind in states if kind), {})
    size = said.get("size") or library.detect_size(state)
    classes = said.get("nc") or library.detect_nb_classes(state)
    if size is None or not whole(classes) or not 1 <= classes <= MOST_CLASSES:
        if whole(classes) and classes > MOST_CLASSES:
            raise ModelError(f"{path}: nc must be the number of classes, up to {MOST_CLASSES}, not {classes}")
        raise ModelError(
            f"{path} does not say its size or its classes; save it with LibreYOLO, `model.save(path)`"
        )
    described = {"family": family, "size": size}
    if (side := _side(said.get("imgsz"), path)) is not None:
        described["imgsz"] = side
    if family == "yolo9":
        # LibreYOLO's own older files do not say it; the official weights were trained with it in the middle
        own = "model_family" in said or any(TOWERS in tensors for tensors, _ in _states(content))
        described["letterbox_pad"] = said.get("letterbox_pad", "topleft" if own else "center")
        if TOWERS in state:
            described["class_width"] = len(state[TOWERS])
    return described, classes, _names(said.get("names"), classes, path)


def _side(imgsz: Any, path: Path) -> int | None:
    """Pixels of both sides, of a number or of two that are equal; ``None`` where the file says nothing."""
    if imgsz is None:
        return None
    sides = list(imgsz) if isinstance(imgsz, list | tuple) else [imgsz]
    if sides and all(map(whole, sides)) and len(sides) <= 2 and len({*sides}) == 1:
        return int(sides[0])
    raise ModelError(f"{path}: imgsz must be the pixels of a square's side, not {repr(imgsz)[:60]}")


def _names(names: Any, classes: int, path: Path) -> dict[int, str]:
    """The name of each label; empty, which is said, where a file's ``names`` are not one for each class."""
    pairs = dict(enumerate(names)) if isinstance(names, list | tuple) else names
    if not pairs and (names is None or isinstance(names, Mapping | list | tuple)):
        return {}
    by_index = {str(key): name for key, name in pairs.items()} if isinstance(pairs, Mapping) else {}
    plain = all(isinstance(name, str) for name in by_index.values())
    if plain and by_index.keys() == {str(index) for index in range(classes)}:
        return {int(index) + 1: name for index, name in by_index.items()}
    say(f"{path} has names {repr(names)[:60]}, which do not name its {classes} classes: they are left out")
    return {}


def _states(content: Any) -> Iterator[tuple[dict[str, Tensor], str | None]]:
    """Each dict of tensors in a tree, and the kind whose weights it holds."""
    if isinstance(content, Mapping):
        if tensors := _tensors(content):
            yield tensors, next((name for name, each in FAMILIES.items() if each.can_load(tensors)), None)
        for value in content.values():
            yield from _states(value)


def converted(content: Any) -> Any:
    """A tree whose dicts of tensors have LibreYOLO's own names, without those of `TRAINING_ONLY`."""
    if not isinstance(content, Mapping):
        return content
    if not (tensors := _tensors(content)):
        return {name: converted(value) for name, value in content.items()}
    tensors = {re.sub(r"^detect\.", "head.", name): tensor for name, tensor in tensors.items()}
    remade = (each.convert_upstream_state_dict(tensors) for each in FAMILIES.values())
    own = next((state for state in remade if state), tensors)
    return {name: tensor for name, tensor in own.items() if not TRAINING_ONLY.search(name)}


def _tensors(content: Mapping[Any, Any]) -> dict[str, Tensor]:
    """The tensors of a state dict; empty for other dicts."""
    return {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}


def whole(value: Any) -> bool:
    """Whether a value is a whole number, and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def listed(names: Any) -> str:
    """Names for a message."""
    return ", ".join(map(str, names))
