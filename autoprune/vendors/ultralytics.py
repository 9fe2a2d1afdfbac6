"""Detectors of Ultralytics: YOLO and RT-DETR, from a checkpoint or an architecture of its own and back.

Ultralytics is under the AGPL-3.0: whoever serves or ships a program with it falls under that license.
"""

import difflib
import re
from collections.abc import Mapping
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from torch import nn

from autoprune.errors import ModelError
from autoprune.progress import say
from autoprune.vendors import ultralytics_architectures as architectures
from autoprune.vendors import ultralytics_files as files
from autoprune.vendors.table import Description
from autoprune.vendors.ultralytics_detector import Selection, UltralyticsDetector
from autoprune.vendors.ultralytics_tools import save, trainer

__all__ = ["UltralyticsDetector", "build", "describe", "read_weights", "save", "trainer"]

IMGSZ = 640
"""Pixels of a side where nothing says another size."""
_RANGES: dict[str, tuple[Any, float, float]] = {
    "imgsz": (Integral, 32, 65_536),
    "conf": (Real, 0, 1),
    "iou": (Real, 0, 1),
    "max_det": (Integral, 1, 65_536),
    "class_width": (Integral, 1, 65_536),
}
"""Kind, least and largest of each number among the arguments."""
_ARGUMENTS = (*_RANGES, "nms", "yaml", "names")


def describe(source: str, arguments: Mapping[str, Any]) -> Description:
    """See `table.Vendor.describe`.

    Args:
        source: a checkpoint (.pt), or an architecture (.yaml), a file or one of Ultralytics' own.
        arguments: ``imgsz``, and the fields of `Selection`; those of an earlier description also hold
            ``yaml``, ``names`` and ``class_width``.
    """
    if "yaml" in arguments:  # an earlier description, which needs no source
        where, complete = "model_arguments: yaml", dict(arguments)
        _refuse_other_architecture(source, arguments["yaml"])
    else:
        where, complete = source, {**_read(source, "imgsz" not in arguments), **arguments}
    _check(complete, where)
    if "yaml" not in arguments:  # what policies of earlier versions hold is taken as it is
        _say_useless(arguments, complete["yaml"], source)
    names = complete.get("names", [])
    return Description(complete, complete["yaml"]["nc"] + 1, dict(enumerate(names, 1)))


def _say_useless(arguments: Mapping[str, Any], architecture: Any, source: str) -> None:
    """Says which settings do nothing: of a suppression that is not made, or a head that is not there.

    They are not refused: runs of earlier versions may have them.
    """
    head = str(architecture["head"][-1][2])
    two = bool(architecture.get("end2end")) or head == "v10Detect"
    if arguments.get("nms") is False and not two:
        say(
            f"model_arguments: nms false does nothing, as {source} has no second head that needs no "
            "suppression (YOLOv10 and YOLO26 have one); omit it"
        )
    if "iou" in arguments and (head == "RTDETRDecoder" or (two and arguments.get("nms") is False)):
        say(f"model_arguments: iou does nothing, as {source} suppresses no boxes so; omit it")


def read_weights(path: Path) -> Any:
    """See `table.Vendor.read_weights`."""
    return files.weights(path)


def build(arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """See `table.Vendor.build`."""
    _check(arguments, "model_arguments: yaml")
    architecture, imgsz = arguments["yaml"], arguments.get("imgsz", IMGSZ)
    with architectures.rows_blamed(architecture):
        vendor = architectures.build(architecture, num_classes - 1, arguments.get("class_width"))
    if imgsz % (stride := int(max(vendor.stride))):
        raise ModelError(
            f"model_arguments: imgsz {imgsz} is no multiple of {stride}, the stride of this model; give "
            f"{-(-imgsz // stride) * stride}"
        )
    vendor.args.imgsz = imgsz
    fields = {name: arguments[name] for name in ("conf", "iou", "max_det", "nms") if name in arguments}
    detector = UltralyticsDetector(vendor, imgsz, Selection(**fields))
    if len(names := arguments.get("names", [])) == num_classes - 1:
        detector.name_classes(dict(enumerate(names, 1)))
    return detector


def _refuse_other_architecture(source: str, architecture: Any) -> None:
    """Refuses an architecture beside a source that names another one.

    A description of this source says the file that it is from. What a file of weights holds is not compared:
    a policy keeps its name alone, and another file may have it by now.

    Raises:
        ModelError: says both.
    """
    if Path(source).suffix not in (".yaml", ".yml") or not isinstance(architecture, Mapping):
        return
    if (named := architecture.get("yaml_file")) != Path(source).name:
        raise ModelError(
            f"model_arguments: yaml is {named or 'of no file'}, and the model is named {Path(source).name}; "
            "omit yaml, or write it into a file and give --model ultralytics:FILE.yaml"
        )


def _read(source: str, with_imgsz: bool) -> dict[str, Any]:
    """The arguments that a source gives.

    Args:
        source: see `describe`.
        with_imgsz: whether nothing else says the input size.

    Raises:
        ModelError: there is none, or it is no dense model that `build` makes.
    """
    path = Path(source).expanduser()
    if path.suffix in (".yaml", ".yml"):
        return {"yaml": architectures.find(source), "imgsz": IMGSZ}
    if not path.is_file():
        raise ModelError(
            f"ultralytics: there is no file {source}; give a checkpoint, or an architecture such as "
            "yolo11n.yaml: nothing is downloaded"
        )
    held = files.checkpoint(path)
    architecture = {**held.yaml, "yaml_file": Path(str(held.yaml.get("yaml_file", "model.yaml"))).name}
    architectures.task_of(architecture, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in held.state.items()}
    width = _class_width(shapes)
    dense = architectures.build(architecture, architecture["nc"], width)
    files.refuse_other_shapes(path, shapes, {n: tuple(t.shape) for n, t in dense.state_dict().items()})
    return {
        "yaml": architecture,
        "imgsz": IMGSZ if held.imgsz is None or not with_imgsz else files.side_of(held.imgsz, path),
        **({"names": list(held.names)} if len(held.names) == architecture["nc"] else {}),
        **({} if width is None else {"class_width": width}),
    }


def _class_width(shapes: files.Shapes) -> int | None:
    """Channels before the class scores, of the last layer that has such scores."""
    selected = [name for name in shapes if re.fullmatch(r"model\.\d+\.cv3\.0\.\d+\.weight", name)]
    return shapes[max(selected, key=lambda name: int(name.split(".")[-2]))][1] if selected else None


def _check(arguments: Mapping[str, Any], where: str) -> None:
    """Refuses unknown arguments and values out of range.

    Args:
        arguments: of a description.
        where: what holds the architecture, for messages.

    Raises:
        ModelError: names the first.
    """
    for name, value in arguments.items():
        if name not in _ARGUMENTS:
            near = difflib.get_close_matches(name, _ARGUMENTS, n=1) or _ARGUMENTS
            raise ModelError(
                f"model_arguments: a model of Ultralytics has no `{name}`; did you mean {near[0]}?"
            )
        if name in _RANGES:
            kind, least, most = _RANGES[name]
            number: Any = value
            if not isinstance(value, kind) or isinstance(value, bool) or not least <= number <= most:
                wanted = "a whole number" if kind is Integral else "a number"
                raise ModelError(
                    f"model_arguments: {name} must be {wanted} from {least} to {most}, not {value!r}"
                )
    if not isinstance(arguments.get("nms", True), bool):
        raise ModelError(f"model_arguments: nms must be true or false, not {arguments['nms']!r}")
    names = arguments.get("names", [])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError("model_arguments: names must be a list of the names of all classes, in order")
    if not isinstance(arguments.get("yaml"), Mapping):
        raise ModelError("model_arguments: yaml must be the architecture, as Ultralytics' YAML files hold it")
    architectures.task_of(arguments["yaml"], where)
