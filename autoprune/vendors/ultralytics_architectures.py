"""Architectures of Ultralytics: the dict that its YAML files and checkpoints hold, checked and built.

Ultralytics evaluates parts of it as code and calls whatever it names, so only layers pass here.
"""

import ast
import copy
import difflib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import ConfigError, ModelError
from autoprune.files import read_yaml
from autoprune.progress import say
from autoprune.vendors.ultralytics_library import DEFAULT_CFG_DICT, ROOT, VERSION, get_cfg, quiet, tasks

TASKS = {
    "Detect": "detect",
    "v10Detect": "detect",
    "RTDETRDecoder": "detect",
    "Segment": "segment",
    "Segment26": "segment",
    "Pose": "pose",
    "Pose26": "pose",
    "OBB": "obb",
    "OBB26": "obb",
}
"""Task of each prediction layer that is taken."""
_MODELS = {
    "detect": tasks.DetectionModel,
    "segment": tasks.SegmentationModel,
    "pose": tasks.PoseModel,
    "obb": tasks.OBBModel,
}
_REFUSED = ("TorchVision",)  # it downloads weights
_LARGEST = 65_536
"""Of repeats and of numbers in the rows: no layer has more channels."""


def find(source: str) -> dict[str, Any]:
    """The architecture of a YAML file, of the user's or by the name of one of Ultralytics' own.

    Raises:
        ModelError: there is none, or it is not YAML.
    """
    path, folder = Path(source).expanduser(), ROOT / "cfg" / "models"
    own = {file.name: file for file in sorted(folder.glob("*/*.yaml"))}
    unscaled = re.sub(r"^(yolov?\d+)[nsmlx](?=[-.])", r"\1", source)
    file = path if path.is_file() else own.get(source) or own.get(unscaled)
    if file is None:
        near = difflib.get_close_matches(path.name, _usable(own), n=3) or ["yolo11n.yaml"]
        raise ModelError(
            f"ultralytics: {source!r} is no file and no architecture of Ultralytics {VERSION}; did you mean "
            f"{', '.join(near)}?"
        )
    try:
        content = read_yaml(file)
    except ConfigError as error:
        raise ModelError(str(error)) from error
    if not isinstance(content, dict):
        raise ModelError(f"{source} is no architecture of Ultralytics: it needs `nc`, `backbone` and `head`")
    scale = tasks.guess_model_scale(path)
    scales = content.get("scales")
    if not scale and isinstance(scales, Mapping) and len(scales) > 1:
        first = next(iter(scales))
        say(
            f"{source} names no scale: {first} is built, the first of {', '.join(map(str, scales))}; a file "
            f"name such as yolo11{first}-{path.stem}.yaml names one"
        )
    return {**content, "scale": scale, "yaml_file": path.name}


def _usable(files: Mapping[str, Path]) -> list[str]:
    """The names among those of Ultralytics' files that are taken, the smallest scale of each."""
    names = []
    for name, file in files.items():
        content = read_yaml(file)
        if content["head"][-1][2] in TASKS:
            names.append(re.sub(r"^(yolov?\d+)(?=[-.])", r"\1n", name) if content.get("scales") else name)
    return names


def task_of(architecture: Mapping[str, Any], where: str) -> str:
    """The task of an architecture that runs no code.

    Raises:
        ModelError: it is malformed, holds more than layers, or has a prediction layer without boxes.
    """
    try:
        rows = [*architecture["backbone"], *architecture["head"]]
        classes = architecture["nc"]
    except (KeyError, TypeError, ValueError) as error:
        raise ModelError(
            f"{where} is no architecture of Ultralytics: it needs `nc`, `backbone` and `head`, with rows of "
            "[from, repeats, module, args]"
        ) from error
    for row in rows:
        if not isinstance(row, list | tuple) or len(row) != 4 or not isinstance(row[3], list | tuple):
            raise ModelError(f"{where}: {str(row)[:60]!r} is no row of [from, repeats, module, [arguments]]")
        layers, repeats = row[0] if isinstance(row[0], list | tuple) else [row[0]], row[1]
        if not all(isinstance(each, int) and not isinstance(each, bool) for each in (*layers, repeats)):
            raise ModelError(
                f"{where}: {str(row)[:60]!r} must begin with whole numbers, the layers that it reads and its "
                "repeats; correct it there"
            )
    modules = [str(module) for _, _, module, _ in rows]
    if not isinstance(classes, int) or isinstance(classes, bool) or not 1 <= classes <= _LARGEST:
        raise ModelError(f"{where}: nc must be the number of classes, not {classes!r}")
    if architecture.get("channels", 3) != 3 or architecture.get("ch", 3) != 3:
        raise ModelError(f"{where} takes images of other than 3 channels; only RGB is taken")
    for module in modules:
        _check_layer(module, where)
    _check_activation(architecture.get("activation"), where)
    scales = architecture.get("scales")
    if large := [x for x in _numbers([rows, scales]) if not abs(x) <= _LARGEST]:
        raise ModelError(f"{where}: no layer takes {str(large[0])[:20]}; at most {_LARGEST}")
    if scales:
        _check_scales(scales, architecture.get("scale"), where)
    if not modules:
        raise ModelError(f"{where} has no layers in `backbone` and `head`; give the whole architecture")
    if modules[-1] not in TASKS:
        raise ModelError(
            f"{where} ends in {modules[-1]}, which does not predict boxes of fixed classes; models that do "
            f"end in {', '.join(TASKS)}"
        )
    first = next(iter(rows[-1][3]), None)
    if first not in ("nc", classes):
        raise ModelError(
            f"{where}: {modules[-1]} has {first!r} for its number of classes, and nc is {classes}; write nc "
            "there"
        )
    return TASKS[modules[-1]]


def _check_scales(scales: Any, scale: Any, where: str) -> None:
    """Refuses another row than Ultralytics unpacks: depth, width and most channels, each above 0."""
    if not isinstance(scales, Mapping):
        raise ModelError(f"{where}: scales must be rows by letter, such as `n: [0.5, 0.25, 1024]`")
    letter = scale or next(iter(scales))
    if letter not in scales:
        known = ", ".join(map(str, scales))
        raise ModelError(f"{where}: scales has no {letter!r}, which the file's name says; it has {known}")
    row = scales[letter] if isinstance(scales[letter], list | tuple) else []
    if len(row) != 3 or not all(isinstance(x, int | float) and x > 0 for x in row):
        raise ModelError(
            f"{where}: scale {letter} must be depth, width and the most channels, such as "
            f"[0.5, 0.25, 1024], not {str(scales[letter])[:60]}"
        )


def _check_layer(name: str, where: str) -> None:
    """Refuses all but classes of layers: Ultralytics would call any function."""
    module = getattr(nn, name[3:], None) if name.startswith("nn.") else getattr(tasks, name, None)
    known = isinstance(module, type) and issubclass(module, nn.Module)
    home = ("torch.nn.modules.", "ultralytics.nn.modules.")
    if not known or not str(module.__module__).startswith(home) or name in _REFUSED:
        raise ModelError(
            f"{where} names {name!r}, which is no layer of Ultralytics {VERSION} or torch.nn; only these are "
            "built"
        )


def _check_activation(text: Any, where: str) -> None:
    """Refuses all but a layer of torch.nn with plain numbers: Ultralytics evaluates the text."""
    if text is None:
        return
    try:
        selected = re.fullmatch(r"(?:torch\.)?nn\.(\w+)(\(.*\))", str(text))
        kind = getattr(nn.modules.activation, selected[1]) if selected else None
        call = ast.parse(f"f{selected[2]}" if selected else "", mode="eval").body
        fine = isinstance(kind, type) and issubclass(kind, nn.Module)
        # `nn.SiLU(…)(…)` and `nn.SiLU().x(…)` match the text too, and call something else
        if not (isinstance(call, ast.Call) and isinstance(call.func, ast.Name)):
            raise ValueError("not one call of it")
        for value in (*call.args, *(word.value for word in call.keywords)):
            ast.literal_eval(value)
    except (SyntaxError, ValueError, AttributeError, RecursionError, MemoryError):
        fine = False
    if not fine:
        raise ModelError(f"{where}: activation {str(text)[:60]!r} is no layer such as nn.SiLU()")


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        for each in value:
            yield from _numbers(each)
    elif isinstance(value, int | float):
        yield value


def build(architecture: Mapping[str, Any], classes: int, class_width: int | None = None) -> Any:
    """Builds a model of Ultralytics with fresh weights, in training mode.

    Args:
        architecture: checked by `task_of`.
        classes: without a background.
        class_width: channels before the class scores of a ``Detect`` layer. Ultralytics derives it from the
            classes of the data that a training begins with, and keeps it when other classes are trained.

    Returns:
        Its DetectionModel, or the kind of its task, with names 0, 1, … and default training arguments.
    """
    task = TASKS[architecture["head"][-1][2]]
    kind = tasks.RTDETRDetectionModel if architecture["head"][-1][2] == "RTDETRDecoder" else _MODELS[task]
    named = copy.deepcopy(dict(architecture))
    named["head"][-1][3][0] = "nc"  # a number there would stay where other classes are trained
    with quiet():
        model = kind(copy.deepcopy(named), nc=classes, verbose=False)
        head = model.model[-1]
        if class_width is not None and class_width != class_width_of(head):
            _widen(head, kind(copy.deepcopy(named), nc=class_width, verbose=False).model[-1])
        model.args = get_cfg(DEFAULT_CFG_DICT)
    model.args.task, model.task, model.nc = task, task, classes
    return model


@contextmanager
def rows_blamed(architecture: Mapping[str, Any]) -> Iterator[None]:
    """Blames the rows for what Ultralytics raises that computes with what they hold.

    Raises:
        ModelError: says where to look.
    """
    try:
        yield
    except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError, AssertionError) as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"{architecture.get('yaml_file', 'the architecture')} can't be built by Ultralytics ({problem}); "
            "check the rows of its `backbone` and `head`, and its multiples: a text or another number than "
            "the layer takes may be among their numbers"
        ) from error


def class_width_of(head: Any) -> int | None:
    """Channels before the class scores; ``None`` where the number of classes decides no width."""
    branch = getattr(head, "cv3", None)
    return None if branch is None else int(branch[0][-1].in_channels)


def _widen(head: Any, other: Any) -> None:
    """Takes the class branches of another prediction layer, but the scores' own number of classes."""
    for name in ("cv3", "one2one_cv3"):
        if (branches := getattr(other, name, None)) is not None:
            for branch in branches:
                branch[-1] = nn.Conv2d(branch[-1].in_channels, head.nc, 1)
            setattr(head, name, branches)
    head.bias_init()
