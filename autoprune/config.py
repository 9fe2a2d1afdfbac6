"""What a user can set: one flat model, with the same names in YAML and as flags. Unknown keys are errors."""

import difflib
import re
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from autoprune.errors import ConfigError
from autoprune.files import read_yaml

Norm = Literal["auto", "freeze", "train"]
NormKind = Literal["batch", "frozen"]
Criterion = Literal["l1", "l2", "bn_scale", "taylor", "fisher", "joint", "random"]
Objective = Literal["map", "gflops", "latency_ms"]
BUDGET_NUMBER = re.compile(r"\+?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
Track = Literal["tensorboard", "mlflow"]


class Strict(BaseModel):
    """A frozen model that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelSpec(Strict):
    """All that decides a dense architecture; stored in every policy.

    Attributes:
        name: a torchvision detector, one of autoprune's own names, or ``package.module:function``.
        arguments: keyword arguments of the builder.
        num_classes: classes including the background, as torchvision counts them.
        norm: ``batch`` (BatchNorm2d) or ``frozen`` (FrozenBatchNorm2d) for the backbone's norms.
    """

    name: str
    arguments: dict[str, Any] = {}
    num_classes: int = Field(ge=2)
    norm: NormKind = "batch"


class SplitPaths(Strict):
    """One split of a data set in COCO format."""

    annotations: Path
    images: Path


class DataPaths(Strict):
    """The splits of a data set, for layouts that `data: FOLDER` does not know."""

    train: SplitPaths
    val: SplitPaths


class Config(Strict):
    """Everything that one run depends on. `autoprune schema` prints it as a JSON schema."""

    # the detector
    model: str = Field(
        "retinanet_resnet50_fpn",
        description="detector: a name of `autoprune inspect --list`, or package.module:function",
    )
    model_arguments: dict[str, Any] = Field({}, description="keyword arguments of the detector's builder")
    num_classes: int | None = Field(
        None, ge=2, description="classes with the background; default: from the data"
    )
    weights: str | None = Field(
        None, description="dense weights: a .safetensors or .pt file, or a torchvision weight name"
    )

    # the data
    data: Path | DataPaths = Field(
        Path("data/coco"), description="folder with annotations/ and images in COCO format"
    )
    input_size: tuple[int, int] | None = Field(
        None, description="height and width that GFLOPs are counted at; default: the commonest in the data"
    )
    image_cache_gib: float = Field(
        2.0, ge=0, description="memory for decoded images, GiB; beyond it they are decoded anew"
    )
    strict: bool = Field(
        False,
        description="refuse a data set with annotations that can't be used, instead of leaving them out",
    )

    # the machine
    device: str = Field("auto", description="cpu, cuda, cuda:1, or auto")
    threads: int | None = Field(None, ge=1, description="CPU threads; default: torch's own choice")
    seed: int = Field(0, ge=0, description="master seed; the same seed repeats a CPU run")

    # what to reach
    budget_gflops: tuple[str, ...] = Field(
        (), description="upper bounds in GFLOPs: 50, or 33% of the dense detector; several make a front"
    )
    budget_mparams: str | None = Field(
        None, description="upper bound on the parameters, in millions or per cent"
    )
    budget_latency_ms: str | None = Field(
        None, description="upper bound on the measured latency, in milliseconds or per cent"
    )
    latency_runtime: Literal["torch", "onnxruntime", "openvino"] = Field(
        "torch", description="where latency is measured; all but torch come with an optional extra"
    )
    objectives: tuple[Objective, ...] = Field(
        ("map", "gflops"), description="what the search trades off; map is always one"
    )

    # importance and space
    criterion: Criterion = Field("joint", description="rule that scores channels")
    importance_images: int = Field(128, ge=1, description="training images that gradient criteria use")
    space: Path | None = Field(None, description="search space YAML; default: made from the importance")

    # the search
    trials: int = Field(32, ge=1, description="trials in all; raise it to extend a finished run")
    sampler: Literal["thompson", "tpe", "nsga2", "gp", "random", "qmc"] = Field(
        "thompson",
        description="how trials are proposed: thompson learns from them what importance is worth; "
        "the others are Optuna's",
    )
    warm_starts: bool = Field(
        True,
        description="begin with what one-shot methods end with (uniform, knapsack, global, greedy), the best "
        "first: 8 trials at most, or 3 for each budget",
    )
    rungs: tuple[int, ...] = Field(
        (0, 50), description="recovery steps at each rung; 0 means statistics only"
    )
    rung_keep: float = Field(
        0.5, gt=0, le=1, description="fraction of the trials that goes on from a rung to the next"
    )
    confirm: int = Field(
        4,
        ge=0,
        description="how often at most, for each budget, a trial that leads is recovered again with another "
        "seed at the end of the search, so that none leads by luck; 0 turns it off",
    )
    proxy_images: int | None = Field(None, ge=1, description="validation images for a proxy; default: all")
    check_proxies: int = Field(
        0,
        ge=0,
        description="trials to recover in full after the search, to see how far proxies can be trusted",
    )
    engine: Literal["local", "ray"] = Field("local", description="where trials run")
    address: str | None = Field(
        None,
        description="Ray: HOST:PORT of the cluster, ray://HOST:PORT from outside of it, auto, or local; "
        "default: start Ray here",
    )
    workers: int = Field(1, ge=1, description="Ray: trials at once, as far as nodes have room")
    cpus_per_trial: float = Field(1.0, gt=0, description="Ray: CPUs a worker takes")
    gpus_per_trial: float = Field(0.0, ge=0, description="Ray: GPUs a worker takes; fractions share one")
    storage: str | None = Field(
        None, description="Optuna storage URL; default: a journal file in the run directory"
    )
    out: Path = Field(Path("runs/search"), description="run directory")
    track: tuple[Track, ...] = Field(
        ("tensorboard",),
        description="where the driver sends metrics: tensorboard (in the run directory), mlflow (to "
        "MLFLOW_TRACKING_URI), or none",
    )

    # training, recovery and proxies
    steps: int = Field(2000, ge=1, description="optimiser steps of a baseline or of a full recovery")
    batch_size: int = Field(8, ge=1, description="images a step")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate of AdamW")
    weight_decay: float = Field(1e-4, ge=0, description="weight decay of AdamW")
    warmup: float = Field(0.1, ge=0, le=1, description="fraction of the steps that warm the learning rate up")
    clip_norm: float = Field(10.0, gt=0, description="largest gradient norm")
    norm: Norm = Field(
        "auto",
        description="what training does to the norms of the backbone: freeze keeps them (FrozenBatchNorm2d), "
        "train renews statistics and weights (BatchNorm2d), auto takes what the weights were trained with; "
        "the conversion changes no output",
    )
    ema_decay: float = Field(
        0.99, ge=0, lt=1, description="decay of the weights' moving average; 0 turns it off"
    )
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="of training; auto: bfloat16 on CUDA, float32 elsewhere; bfloat16 halves the time on "
        "CPUs with AMX and is float32 on others",
    )
    distill: float = Field(1.0, ge=0, description="weight of the feature distillation; 0 turns it off")
    distill_weighting: Literal["importance", "none"] = Field(
        "importance", description="what the channels count by in the feature distillation; none: all alike"
    )
    distill_logits: float = Field(
        0.0,
        ge=0,
        description="weight of the distillation of a one-stage head's class logits; 0 turns it off, and it "
        "takes the time of the dense head",
    )
    regrow_rounds: int = Field(
        0,
        ge=0,
        description="rounds in which a recovery, before it trains, exchanges the least valuable kept "
        "channels for more valuable removed ones at no more GFLOPs; 0 turns it off",
    )
    reconstruct_images: int = Field(
        32,
        ge=0,
        description="images that pruned weights are solved anew on, by least squares on the dense layers' "
        "outputs, before they are trained; 0 renews the statistics instead",
    )
    recalibration_images: int = Field(
        128, ge=0, description="images that renew the BatchNorm statistics where nothing is reconstructed"
    )

    @property
    def norm_kind(self) -> Literal["auto"] | NormKind:
        """The norms that `norm` means: what `models.load_dense` takes."""
        kinds: dict[Norm, Literal["auto"] | NormKind]
        kinds = {"auto": "auto", "freeze": "frozen", "train": "batch"}
        return kinds[self.norm]

    @field_validator("budget_gflops", "objectives", "rungs", "track", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any, info: ValidationInfo) -> Any:
        """Takes `50`, `"50%,33%"` or a list."""
        if isinstance(value, str):
            value = [part.strip() for part in value.split(",") if part.strip()]
            if info.field_name == "track" and value == ["none"]:
                value = []
        elif isinstance(value, int | float):
            value = [value]
        if info.field_name == "budget_gflops" and isinstance(value, list | tuple):
            value = [str(part) for part in value]
        return value

    @field_validator("budget_mparams", "budget_latency_ms", mode="before")
    @classmethod
    def _number_as_text(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int | float) else value

    @field_validator("budget_latency_ms")
    @classmethod
    def _a_time_or_a_share(cls, value: str | None) -> str | None:
        """Refuses what is wrong whatever the dense latency, which takes minutes to measure."""
        if value is None:
            return None
        fraction, number = value.strip().endswith("%"), value.strip().removesuffix("%").strip()
        if not BUDGET_NUMBER.fullmatch(number) or float(number) == 0 or (fraction and float(number) >= 100):
            raise ValueError(
                "must be milliseconds such as 12.5, or a share below 100% of the dense detector's latency "
                "such as 60%"
            )
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "map" not in self.objectives:
            raise ValueError("objectives must hold map")
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 0:
            raise ValueError("rungs must rise, from 0 or more")
        if self.reconstruct_images == 1:
            raise ValueError("reconstruct_images must be 0 or at least 2, as some are held out")
        return self


def make_config(**values: Any) -> Config:
    """Validates settings, leaving out those that are ``None``.

    Raises:
        ConfigError: a key is unknown (names the nearest ones) or a value is out of range.
    """
    return _validate({key: value for key, value in values.items() if value is not None}, "the settings")


def load_config(path: Path, **overrides: Any) -> Config:
    """Reads a YAML file of settings; ``overrides`` that are not ``None`` win.

    Raises:
        ConfigError: the file can't be read, a key is unknown, or a value is out of range.
    """
    content = read_yaml(path) or {}
    if not isinstance(content, dict):
        raise ConfigError(f"{path} must hold `field: value` lines, not a {type(content).__name__}")
    given = {key: value for key, value in overrides.items() if value is not None}
    return _validate({**content, **given}, str(path))


def first_problem(error: ValidationError, valid_keys: list[str], where: str) -> str:
    """Says the worst problem of a validation error in one line: unknown keys come before what they lack."""
    problems = error.errors()
    problem = next((found for found in problems if found["type"] == "extra_forbidden"), problems[0])
    name = ".".join(str(part) for part in problem["loc"])
    if problem["type"] == "extra_forbidden":
        near = difflib.get_close_matches(name, valid_keys, n=3) or valid_keys
        return f"unknown key `{name}` in {where}; valid keys: {', '.join(near)}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] != "missing":
        message += f" (got {problem['input']!r})"
    return f"{where}: `{name}`: {message}" if name else f"{where}: {message}"


def _validate(values: dict[str, Any], where: str) -> Config:
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_problem(error, list(Config.model_fields), where)) from error
