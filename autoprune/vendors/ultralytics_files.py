"""Checkpoints of Ultralytics, read without running their code: stand-ins take the place of its classes."""

import re
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from autoprune.checkpoints.read import read_checkpoint
from autoprune.errors import ModelError
from autoprune.progress import say

_HELD = re.compile(r"ultralytics(\.\w+)+|torch\.nn\.modules(\.\w+)+|builtins\.(getattr|set)")
"""Names that `Held` stands in for. Some of these files name a method of theirs, by `getattr`."""
_SCORES = re.compile(r"cv3\.\d+\.\d+\.(weight|bias)$|(enc|dec)_score_head(\.\d+)?\.(weight|bias)$")
"""Names of the tensors that give class scores, in heads of YOLO and of RT-DETR."""
Shapes = Mapping[str, tuple[int, ...]]
SIDES = range(32, 65_537)
"""Pixels of a side that an input can have."""
MOST_CLASSES = 65_536


class Held:
    """An object whose class is not imported: what a file says of it, as data.

    Attributes:
        content: its attributes.
    """

    content: Mapping[str, Any]

    def __new__(cls, *args: Any) -> "Held":  # noqa: D102
        held = super().__new__(cls)
        held.content = {}
        return held

    def __init__(self, *args: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:  # noqa: D105
        state = state[0] if isinstance(state, tuple) and state else state
        self.content = state if isinstance(state, Mapping) else {}


@dataclass(frozen=True)
class Checkpoint:
    """What a file of Ultralytics holds.

    Attributes:
        yaml: the architecture, as `parse_model` of Ultralytics takes it.
        names: of the classes, in order; empty where it has none.
        imgsz: pixels of a side that it was trained at, as the file holds it; ``None`` where it does not say.
        state: tensors by the names of its model.
    """

    yaml: dict[str, Any]
    names: tuple[str, ...]
    imgsz: Any
    state: dict[str, Tensor]


def read(path: Path, device: str = "cpu") -> Any:
    """The tree that a file holds; objects of Ultralytics' and torch's layers are `Held`.

    Raises:
        ModelError: it can't be read, or needs code of another class, which is named.
    """
    try:
        with path.open("rb") as file:
            named = torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except Exception:  # no archive of torch.save: the reading below says what it is
        named = []
    return read_checkpoint(path, device, [(Held, name) for name in sorted(named) if _HELD.fullmatch(name)])


def checkpoint(path: Path) -> Checkpoint:
    """Reads a checkpoint of Ultralytics; its tensors are on torch's device ``meta``, without their values.

    Raises:
        ModelError: it can't be read safely, or is none with a model.
    """
    stat = path.stat()
    return _checkpoint(path, stat.st_mtime_ns, stat.st_size)


@lru_cache(maxsize=4)
def _checkpoint(path: Path, _stamp: int, _bytes: int) -> Checkpoint:
    content = read(path, "meta")
    model = _model_of(content)
    if model is None:
        if isinstance(content, Mapping) and any(isinstance(value, Tensor) for value in content.values()):
            raise ModelError(
                f"{path} holds weights without their architecture; name that too: "
                f"--model ultralytics:yolo11n.yaml --weights {path}"
            )
        raise ModelError(f"{path} is no checkpoint of Ultralytics: it holds no model; check --model")
    architecture = model.content.get("yaml")
    if not isinstance(architecture, Mapping):
        raise ModelError(f"{path} holds a model without its architecture (`yaml`); save it with Ultralytics")
    arguments: Any = content.get("train_args") if isinstance(content, Mapping) else None
    arguments = arguments or model.content.get("args") or {}
    arguments = arguments.content if isinstance(arguments, Held) else arguments
    imgsz = arguments.get("imgsz") if isinstance(arguments, Mapping) else None
    return Checkpoint(
        dict(architecture),
        _names(model.content.get("names"), architecture.get("nc"), path),
        imgsz,
        dict(tensors_of(model)),
    )


def side_of(imgsz: Any, path: Path) -> int:
    """The pixels of a side that a checkpoint's ``imgsz`` means: a whole number, or equal ones in a list.

    Raises:
        ModelError: it means none.
    """
    sides = imgsz if isinstance(imgsz, list | tuple) else [imgsz]
    whole = [
        int(each)
        for each in sides
        if (isinstance(each, int) and not isinstance(each, bool))
        or (isinstance(each, float) and each.is_integer())
    ]
    if len(whole) == len(sides) and len(set(whole)) == 1 and whole[0] in SIDES:
        return whole[0]
    raise ModelError(
        f"{path} says imgsz {repr(imgsz)[:60]} of its training, which is no size of a square; give one with "
        """--model-arguments '{"imgsz": 640}' (YAML: model_arguments)"""
    )


def weights(path: Path) -> Any:
    """The tensors of a file for `state_for`: of a checkpoint, the ones that Ultralytics would load.

    Raises:
        ModelError: it can't be read safely.
    """
    content = read(path)
    if (model := _model_of(content)) is not None:
        return {"model": OrderedDict(tensors_of(model)), "names": model.content.get("names")}
    return content


def _model_of(content: Any) -> Held | None:
    """The model of a file; the average comes first, as in Ultralytics."""
    candidates = [content.get("ema"), content.get("model")] if isinstance(content, Mapping) else [content]
    held = (each for each in candidates if isinstance(each, Held))
    return next((each for each in held if "_modules" in each.content), None)


def tensors_of(module: Held, prefix: str = "", depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers of a held module, as its state dict would name them."""
    if depth > 100:  # no model is as deep: the file holds a module in itself
        return
    skipped = module.content.get("_non_persistent_buffers_set") or ()
    for part in ("_parameters", "_buffers"):
        held = module.content.get(part)
        for name, value in held.items() if isinstance(held, Mapping) else ():
            if isinstance(value, Tensor) and not (isinstance(skipped, set) and name in skipped):
                yield f"{prefix}{name}", value.detach()
    children = module.content.get("_modules")
    for name, child in children.items() if isinstance(children, Mapping) else ():
        if isinstance(child, Held):
            yield from tensors_of(child, f"{prefix}{name}.", depth + 1)


def _names(names: Any, classes: Any, path: Path) -> tuple[str, ...]:
    """Names in order, of a list or of a mapping from index to name; a class without one has its index."""
    if isinstance(names, Mapping):
        count = classes if isinstance(classes, int) and len(names) <= classes <= MOST_CLASSES else len(names)
        every = range(count)
        if not all(index in every for index in names):
            say(f"{path} has names {repr(names)[:60]}, not by the indices of its {count} classes: left out")
            return ()
        if names and len(names) < count:
            say(f"{path} names {len(names)} of its {count} classes: data is compared with these alone")
        names = [names.get(index, index) for index in every]
    return tuple(map(str, names)) if isinstance(names, list | tuple) and None not in names else ()


def _classes_alone(names: list[str], shapes: Shapes, built: Shapes) -> bool:
    """Whether tensors are those of the scores, and differ by one number of classes."""
    return (
        all(_SCORES.search(name) and shapes[name][1:] == built[name][1:] for name in names)
        and len({shapes[name][:1] for name in names}) == 1
    )


def refuse_other_shapes(path: Path, shapes: Shapes, built: Shapes) -> None:
    """Refuses tensors that the architecture in the same file does not have.

    Raises:
        ModelError: they are those of a pruned or a fused model, or of another version.
    """
    different = [name for name, shape in built.items() if shapes.get(name, shape) != shape]
    missing, extra = (
        sorted(name for name in one.keys() - other.keys() if not name.endswith("num_batches_tracked"))
        for one, other in ((built, shapes), (shapes, built))
    )
    if missing and not extra + different and all(".bn." in name or "one2one" in name for name in missing):
        problem = f"is fused: {missing[0]} is missing; give the file that was trained, before `fuse()`"
    elif any(".bn." in name for name in missing) and not any(".bn." in name for name in shapes):
        problem = "is fused: its convolutions have no norms; give the file that was trained, before `fuse()`"
    elif missing + extra:
        kinds = Counter({"missing": len(missing), "unknown": len(extra)})
        shown = ", ".join((missing or extra)[:3])
        problem = (
            f"does not fit the architecture that it names: {kinds['missing']} tensors are missing and "
            f"{kinds['unknown']} unknown, such as {shown}; give a checkpoint of this version of Ultralytics"
        )
    elif different and _classes_alone(different, shapes, built):
        name = different[0]
        problem = (
            f"has other classes than the architecture that it names: only the class layers differ, of "
            f"{shapes[name][0]} classes where its yaml says nc {built[name][0]} (`{name}`); set nc to "
            f"{shapes[name][0]} and save it again"
        )
    elif different:
        name = different[0]
        problem = (
            f"holds a pruned model given as dense: `{name}` is {list(shapes[name])}, its architecture has "
            f"{list(built[name])}; give the folder with its policy.yaml, or the dense checkpoint"
        )
    else:
        return
    raise ModelError(f"{path} {problem}")
