"""The types of the settings: literals, specifications, and how their texts are read."""

import difflib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, GetJsonSchemaHandler, PlainSerializer
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from autoprune.passwords import masked
from autoprune.validation import Strict

Norm = Literal["auto", "freeze", "train"]
NormKind = Literal["batch", "frozen"]
Criterion = Literal["l1", "l2", "bn_scale", "taylor", "fisher", "joint", "obs", "random"]
Objective = Literal["map", "gflops", "latency_ms"]
Track = Literal["tensorboard", "mlflow"]
Runtime = Literal["torch", "onnxruntime", "openvino"]
"""The keys of `runtimes.sessions.RUNTIMES`, whose libraries are not imported to parse a command line."""
Evaluator = Literal["hotcoco", "pycocotools"]

Pixels = Annotated[int, Field(ge=1, le=65_536)]
"""A height or width."""

BUDGET_NUMBER = re.compile(r"\+?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)


VENDORS: dict[str, str] = {
    "ultralytics": "ultralytics:yolo11n.yaml",
    "transformers": "transformers:FOLDER",
    "libreyolo": "libreyolo:yolox-s",
    "timm": "timm:resnet18",
}
"""Other libraries whose detectors can be named, by the names of their extras, with an example each."""


HUB_ID = re.compile(r"[\w.\-]+/[\w.\-]+")
"""The form of a model's id on the hub of Transformers."""


def is_vendor(name: str) -> bool:
    """Whether a detector's name is ``LIBRARY:SOURCE``, the library one of `VENDORS`."""
    library, colon, _ = name.partition(":")
    return bool(colon) and library in VENDORS


def near_vendor(name: str) -> str | None:
    """What ``LIBRARY:SOURCE`` may have meant, where the library is none of `VENDORS` but almost one."""
    library, colon, source = name.partition(":")
    near = difflib.get_close_matches(library.lower(), VENDORS, n=1, cutoff=0.75)
    return f"{near[0]}:{source}" if colon and near and library not in VENDORS else None


def source_of_vendor(name: str) -> Path | None:
    """The file or folder that ``LIBRARY:SOURCE`` names; ``None`` where SOURCE is a name."""
    library, _, text = name.partition(":")
    source = Path(text).expanduser()
    there = source.is_dir() if library == "transformers" else source.is_file() and library != "timm"
    return source if is_vendor(name) and there else None


def weights_of_vendor(name: str) -> str | None:
    """The file or folder with weights that ``LIBRARY:SOURCE`` names; ``None`` where it names none.

    What is no folder may be the id of a model in a local cache, which has weights too.
    """
    library, _, text = name.partition(":")
    source = source_of_vendor(name)
    if source is None:
        is_hub = library == "transformers" and not Path(text).exists() and HUB_ID.fullmatch(text)
        return text if is_hub else None
    inside = (path for kind in ("*.safetensors", "pytorch_model*.bin") for path in source.glob(kind))
    holds = any(inside) if source.is_dir() else source.suffix not in (".yaml", ".yml")
    return str(source) if holds else None


class ModelSpec(Strict):
    """All that decides a dense architecture; stored in every policy.

    Attributes:
        name: a torchvision detector, one of autoprune's own names, ``LIBRARY:SOURCE`` of `VENDORS`, or
            ``package.module:function``.
        arguments: keyword arguments of the builder.
        num_classes: classes including the background, as torchvision counts them.
        norm: ``batch`` (BatchNorm2d) or ``frozen`` (FrozenBatchNorm2d) for the backbone's norms.
    """

    name: str
    arguments: dict[str, Any] = Field({})
    num_classes: int = Field(ge=2)
    norm: NormKind = "batch"


class SplitPaths(Strict):
    """One split of a data set in COCO format."""

    annotations: Path
    images: Path


class DataPaths(Strict, extra="allow"):
    """The splits of a data set whose layout `data: FOLDER` does not cover: `train`, `val`, and any others."""

    __pydantic_extra__: dict[str, SplitPaths]

    train: SplitPaths
    val: SplitPaths


@dataclass(frozen=True)
class Setting:
    """Metadata of a field of `Config`, beside its type, default and description; part of the JSON schema.

    Attributes:
        panel: heading under which ``--help`` lists the option.
        may_change: whether a run can be resumed with another value, because the field says where and how
            long the search runs, not what it searches.
    """

    panel: str
    may_change: bool = False

    def __get_pydantic_json_schema__(
        self, schema: CoreSchema, handler: GetJsonSchemaHandler
    ) -> JsonSchemaValue:
        """Adds ``panel`` and ``may_change_on_resume`` to the field's entry."""
        return {**handler(schema), "panel": self.panel, "may_change_on_resume": self.may_change}


def _several(value: Any) -> Any:
    """Takes ``50``, ``"50%,33%"`` or a list."""
    if isinstance(value, str):
        parts = [part.strip() for part in value.split(",")]
        if not all(parts):
            raise ValueError("must hold values, separated by commas, and one is empty")
        return parts
    return [value] if isinstance(value, int | float) else value


def _text(value: Any) -> Any:
    return str(value) if isinstance(value, int | float) else value


def _texts(values: Any) -> Any:
    return [str(value) for value in values] if isinstance(values, list | tuple) else values


def _folder_or_splits(value: Any) -> Any:
    """Reads splits as such; of a union, pydantic would also say why they are no folder."""
    if isinstance(value, str | os.PathLike | DataPaths) and value != "":
        return _path_text(value)
    if isinstance(value, Mapping) and value:
        return DataPaths.model_validate(value)  # its problems become those of the field
    raise ValueError(
        "must be a folder, or the splits `train` and `val`, each with `annotations` and `images`"
    )


def _path_text(value: Any) -> Any:
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    if isinstance(text, str) and not is_utf8(text):
        raise ValueError("is not UTF-8, as the files of a run are; rename it")
    return text


def is_utf8(path: str) -> bool:
    """Whether a path has no bytes but those of UTF-8: others could be written to YAML, and not read back."""
    return not any("\ud800" <= character <= "\udfff" for character in path)


def _device_text(value: Any) -> Any:
    """Takes a ``torch.device``, by its name: to read settings, torch is not imported."""
    return str(value) if type(value).__module__ == "torch" and type(value).__name__ == "device" else value


def _time_or_percentage(value: str | None) -> str | None:
    """Refuses what is wrong whatever the dense latency, which takes minutes to measure."""
    if value is None:
        return None
    relative, number = value.strip().endswith("%"), value.strip().removesuffix("%").strip()
    if not BUDGET_NUMBER.fullmatch(number) or float(number) == 0 or (relative and float(number) >= 100):
        raise ValueError(
            "must be milliseconds such as 12.5, or below 100% of the dense detector's latency such as 60%"
        )
    return value


def _percentage(value: Any) -> Any:
    """``20%`` as 0.2; what is no percentage as it is."""
    if isinstance(value, str) and value.strip().endswith("%"):
        number = value.strip().removesuffix("%").strip()
        return float(number) / 100 if BUDGET_NUMBER.fullmatch(number) else value
    return value


def _percentages(values: Any) -> Any:
    return [_percentage(value) for value in values] if isinstance(values, list | tuple) else values


def _fraction(value: Any) -> Any:
    try:
        read = float(_percentage(value))
    except (TypeError, ValueError, OverflowError):
        read = math.nan
    if not 0 < read < 1:
        raise ValueError("must be a fraction between 0 and 1 such as 0.2, or a percentage such as 20%")
    return read


def _input_sizes(values: tuple[float, ...]) -> tuple[float, ...]:
    """Checks fractions of the detector's own input size, and sorts them, the largest first."""
    if not all(0 < value <= 1 for value in values):
        raise ValueError(
            "must be fractions of the detector's own input size, above 0 and at most 1 (0.75, or 75%)"
        )
    if len(set(values)) < len(values):
        raise ValueError("must hold each fraction once")
    if 1 not in values:
        raise ValueError(
            "must hold 1.0, the detector's own input size; model_arguments can give the detector another one"
        )
    return tuple(sorted(values, reverse=True))


def _label_numbers(value: Any) -> Any:
    """Takes ``"RBC=1,WBC=2"`` or a mapping; a name may hold ``=``, but no comma outside a mapping."""
    if not isinstance(value, str):
        return value
    pairs = [part.strip().rpartition("=") for part in value.split(",") if part.strip()]
    if not pairs or not all(name.strip() and number.strip().isdecimal() for name, _, number in pairs):
        raise ValueError("must be NAME=LABEL pairs such as RBC=1,WBC=2")
    if len({name.strip() for name, _, _ in pairs}) < len(pairs):
        raise ValueError("must name each category once")
    return {name.strip(): int(number) for name, _, number in pairs}


def _distinct_labels(values: dict[str, int] | None) -> dict[str, int] | None:
    if values is None:
        return None
    if not values or min(values.values()) < 0 or len(set(values.values())) < len(values):
        raise ValueError("must give each category a label of its own, 0 or more")
    return values


# Of several on one field, pydantic runs the validators before parsing from right to left.
Fraction = BeforeValidator(lambda value: None if value is None else _fraction(value))
DeviceText = BeforeValidator(_device_text)
FolderOrSplits = BeforeValidator(_folder_or_splits)
Percentages = BeforeValidator(_percentages)
PasswordText = PlainSerializer(masked, return_type=str, when_used="json-unless-none")
PathText = BeforeValidator(_path_text)
Several = BeforeValidator(_several)
Text = BeforeValidator(_text)
Texts = BeforeValidator(_texts)
LabelNumbers = BeforeValidator(_label_numbers)
DistinctLabels = AfterValidator(_distinct_labels)
NoneIsEmpty = BeforeValidator(lambda values: [] if values == ["none"] else values)
InputSizes = AfterValidator(_input_sizes)
LatencyBudget = AfterValidator(_time_or_percentage)
