"""The settings of a run and the JSON files of a detector's folder: each is checked when it is read.

Keys of JSON files that a shape does not name are kept, and not checked.
"""

import json
import shlex
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Generic, NotRequired, TypeVar

from pydantic import AfterValidator, AllowInfNan, BaseModel, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict

from autoprune.config import RENAMED, Config, load_config
from autoprune.errors import RunError
from autoprune.files import read_yaml
from autoprune.run import names
from autoprune.trust import note_file
from autoprune.validation import first_problem

T = TypeVar("T")

ADDED: dict[str, Any] = {
    "augment": False,
    "curves": False,
    "detection_precision": "float32",
    "distill_head": False,
    "empty_blocks": False,
    "evaluator": "hotcoco",
    "input_sizes": (1.0,),
    "labels": None,
    "racing": False,
    "val_fraction": None,
    "weights_key": None,
}
"""Fields of `Config` that the previous version did not have, with what its runs did, which lack them."""


def load_run_config(path: Path, **overrides: Any) -> Config:
    """Reads the `config.yaml` that a search wrote; its factory needs the user's consent (`trust`).

    Raises:
        RunError: the file is damaged: a search writes all settings into it.
        ConfigError: it can't be read, or a value is out of range.
    """
    content = read_yaml(path)
    written = {RENAMED.get(key, key) for key in content} if isinstance(content, dict) else set()
    if missing := [name for name in Config.model_fields if name not in {*written, *ADDED}]:
        what = f"`{missing[0]}` is missing" if written else "it holds no settings"
        raise RunError(f"{path} is damaged: {what}; restore the file, or search again with another --out")
    added = {name: value for name, value in ADDED.items() if name not in written}
    config = load_config(path, **{**added, **overrides})
    note_file(config.model, path)
    return config


def warn_elsewhere(file: Path, out: Path) -> None:
    """Warns where settings are those of a run directory that was copied or moved, as they name the original.

    Args:
        file: the settings that the user gave.
        out: the run directory in them.
    """
    folder = file.resolve().parent
    begun = any((folder / name).exists() for name in (names.JOURNAL_FILE, names.SPACE_FILE))
    if file.name == names.CONFIG_FILE and begun and out.expanduser().resolve() != folder:
        problem = (
            f"{file} has `out: {out}`, so the work is done there; "
            f"--out {shlex.quote(str(file.parent))} does it in its folder"
        )
        warnings.warn(problem, stacklevel=2)


def _has_map(scores: dict[str, float]) -> dict[str, float]:
    if "map" not in scores:
        raise ValueError("`map` is missing")
    return scores


Number = Annotated[float, AllowInfNan(False)]
Cost = Annotated[float, AllowInfNan(False), Field(gt=0)]
Scores = Annotated[dict[str, Number], AfterValidator(_has_map)]
PerClass = dict[str, float | None]  # NaN for a class without boxes


class DenseMetrics(TypedDict):
    """The dense detector beside a recovered one."""

    metrics: Scores
    per_class: PerClass
    gflops: Cost
    mparams: Cost
    input_size: NotRequired[Annotated[list[int], Field(min_length=2, max_length=2)]]


class RecoverySettings(TypedDict):
    """What a recovery was made with, as far as anything shows it."""

    steps: int
    batch_size: int
    learning_rate: Number | None  # None where the recovery chose it
    distill: Number
    seed: int


class RecoveredMetrics(TypedDict):
    """`metrics.json` of a recovered detector."""

    trial: NotRequired[int]
    origin: NotRequired[str]
    data: NotRequired[str]
    versions: NotRequired[str]
    input_size: NotRequired[Annotated[list[int], Field(min_length=2, max_length=2)]]
    images: int
    metrics: Scores
    per_class: PerClass
    gflops: Cost
    mparams: Cost
    dense: NotRequired[DenseMetrics | None]
    untrained_map: NotRequired[Number]
    kept: NotRequired[str]
    learning_rate: NotRequired[Number]
    settings: RecoverySettings


class LatencyRow(TypedDict):
    """One setup in `latency.json`."""

    label: str
    median_ms: Cost
    p10_ms: Cost
    p90_ms: Cost
    dense_ms: NotRequired[Cost]
    dense_network_size: NotRequired[Annotated[list[int], Field(min_length=2, max_length=2)]]


Corners = Annotated[list[Number], Field(min_length=4, max_length=4)]


class TrueBox(TypedDict):
    """A box of the annotations."""

    box: Corners
    label: str


class FoundBox(TrueBox):
    """A detection."""

    score: Number


class SampleImage(BaseModel):
    """One image in `samples.json`."""

    file: str
    height: int = Field(ge=1)
    width: int = Field(ge=1)
    stored: bool | None = None
    levels: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None
    truth: list[TrueBox]
    detections: dict[str, list[FoundBox]] = Field(alias="found")


class Samples(TypedDict):
    """`samples.json`."""

    images: list[SampleImage]


@dataclass(frozen=True)
class Document(Generic[T]):
    """A kind of file.

    Attributes:
        shape: what it holds.
        remedy: what to do where it is damaged; ``{file}`` and ``{folder}`` are filled in.
    """

    shape: TypeAdapter[T]
    remedy: str

    def read(self, file: Path) -> Any:
        """The content, as `json.loads` gives it.

        Raises:
            RunError: it can't be read, is not JSON, or has another shape; names the key and the remedy.
        """
        folder = shlex.quote(str(file.parent))  # for the commands in a remedy
        remedy = self.remedy.format(file=file, folder=folder)
        try:
            text = file.read_text(encoding="utf-8")
            content = json.loads(text)
        except (OSError, ValueError, RecursionError) as error:
            raise RunError(f"{file} can't be read ({error}); {remedy}") from error
        try:
            self.shape.validate_json(text, strict=True)  # a text is no number here
        except ValidationError as error:
            raise RunError(f"{first_problem(error, None, str(file))}; {remedy}") from error
        return content


METRICS = Document(TypeAdapter(RecoveredMetrics), "delete {folder} and recreate it")
LATENCIES = Document(
    TypeAdapter(list[LatencyRow]),
    "delete the file; `autoprune latency {folder} --record` measures again",
)
SAMPLES = Document(TypeAdapter(Samples), "delete the file; the report then shows no sample images of it")
