"""The settings of a run: one flat model, the same names in YAML and as flags, unknown keys are errors."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator

from autoprune.errors import ConfigError
from autoprune.fields import (
    Criterion,
    DataPaths,
    DeviceText,
    DistinctLabels,
    Evaluator,
    FolderOrSplits,
    Fraction,
    InputSizes,
    LabelNumbers,
    LatencyBudget,
    ModelSpec,
    NoneIsEmpty,
    Norm,
    NormKind,
    Objective,
    PasswordText,
    PathText,
    Percentages,
    Pixels,
    Runtime,
    Setting,
    Several,
    Text,
    Texts,
    Track,
    weights_of_vendor,
)
from autoprune.files import read_yaml
from autoprune.passwords import VARIABLE
from autoprune.validation import Strict, first_problem, with_new_keys

__all__ = [
    "MAY_CHANGE",
    "SETTINGS",
    "Config",
    "Criterion",
    "DataPaths",
    "ModelSpec",
    "load_config",
    "make_config",
]

RENAMED: dict[str, str] = {}
"""Fields of `Config` by the names that the previous version had for them: still read, with a warning."""


_DETECTOR = Setting("Detector")
_WEIGHTS = Setting("Detector", may_change=True)
_DATA = Setting("Data", may_change=True)
_DATA_PART = Setting("Data")
_BUDGET = Setting("Budget")
_SPACE = Setting("Importance and space")
_OUTPUT = Setting("Output", may_change=True)
_SEARCH = Setting("Search")
_SEARCH_LENGTH = Setting("Search", may_change=True)
_ENGINE = Setting("Engine", may_change=True)
_TRAINING = Setting("Training")
_TRAINING_LENGTH = Setting("Training", may_change=True)
_MACHINE = Setting("Machine")
_HARDWARE = Setting("Machine", may_change=True)


class Config(Strict):
    """Everything that one run depends on. `autoprune schema` prints it as a JSON schema.

    The one source of each setting: type, limits, default, description, and its `Setting`.
    """

    model: Annotated[str, _DETECTOR] = Field(
        "retinanet_resnet50_fpn",
        description="detector: a name of `autoprune inspect --list`, LIBRARY:SOURCE such as "
        "ultralytics:best.pt, or package.module:function",
    )
    model_arguments: Annotated[dict[str, Any], _DETECTOR] = Field(
        {}, description="keyword arguments of the detector's builder, such as min_size and max_size"
    )
    num_classes: Annotated[int | None, _DETECTOR] = Field(
        None, ge=2, description="classes, background included; default: from the data"
    )
    weights: Annotated[str | None, PathText, _WEIGHTS] = Field(
        None,
        description="dense weights: a checkpoint (.safetensors, .pt, …), or a torchvision weight name; "
        "default: the file that LIBRARY:FILE names",
    )
    weights_key: Annotated[str | None, _WEIGHTS] = Field(
        None, description="which weights of a checkpoint that holds several, such as model_ema"
    )
    input_size: Annotated[tuple[Pixels, Pixels] | None, _DETECTOR] = Field(
        None,
        description="height and width at which GFLOPs are counted; default: the most common in the data",
    )

    data: Annotated[Path | DataPaths, FolderOrSplits, _DATA] = Field(
        Path("data/coco"),
        description="folder of COCO, YOLO or Pascal VOC data, YOLO's data.yaml, or one COCO JSON file",
    )
    val_fraction: Annotated[float | None, Fraction, _DATA_PART] = Field(
        None,
        gt=0,
        lt=1,
        description="fraction of the images to validate on where the data has no validation split, such as "
        "0.2 or 20%; a hash of the file names chooses them, the same ones each time",
    )
    labels: Annotated[dict[str, int] | None, LabelNumbers, DistinctLabels, _DATA_PART] = Field(
        None,
        description="label of the detector for each category, such as RBC=1,WBC=2; default: from the "
        "category ids of the training split, checked against the weights",
    )
    image_cache_gib: Annotated[float, _DATA] = Field(
        2.0, ge=0, description="memory for decoded images, GiB; images beyond it are decoded at each use"
    )
    strict: Annotated[bool, _DATA] = Field(
        False, description="refuse a data set with unusable annotations, instead of skipping them"
    )
    evaluator: Annotated[Evaluator, _DATA] = Field(
        "hotcoco",
        description="library that runs COCOeval; the numbers of both are the same, hotcoco is far faster",
    )

    budget_gflops: Annotated[tuple[str, ...], Texts, Several, _BUDGET] = Field(
        (),
        description="upper bounds on GFLOPs: 50, or 33% of the dense detector; several trace a front",
    )
    budget_mparams: Annotated[str | None, Text, _BUDGET] = Field(
        None, description="upper bound on the parameters: millions, or a percentage of the dense detector's"
    )
    budget_latency_ms: Annotated[str | None, Text, LatencyBudget, _BUDGET] = Field(
        None,
        description="upper bound on the measured latency: milliseconds, or a percentage of the dense "
        "detector's",
    )
    latency_runtime: Annotated[Runtime, _BUDGET] = Field(
        "torch", description="runtime in which latency is measured; all but torch need an optional extra"
    )
    objectives: Annotated[tuple[Objective, ...], Several, _BUDGET] = Field(
        ("map", "gflops"), description="objectives of the search; map is always one"
    )

    criterion: Annotated[Criterion, _SPACE] = Field(
        "obs",
        description="importance criterion of channels; obs also weighs how well the others can replace them",
    )
    importance_images: Annotated[int, _SPACE] = Field(
        128, ge=1, description="training images that obs and the gradient criteria are computed on"
    )
    curves: Annotated[bool, _SPACE] = Field(
        True,
        description="measure how the loss rises as each group alone is narrowed and reconstructed, and use "
        "these curves in place of the criterion's sums",
    )
    space: Annotated[Path | None, PathText, _SPACE] = Field(
        None, description="search space YAML; default: derived from the importance"
    )

    input_sizes: Annotated[tuple[float, ...], InputSizes, Percentages, Several, _SEARCH] = Field(
        (1.0,),
        description="input sizes that trials may have: fractions of the detector's own one, rounded to its "
        "stride; of several, each trial has one, at which it is trained, evaluated and counted",
    )
    empty_blocks: Annotated[bool, _SPACE] = Field(
        False,
        description="let whole blocks go where another path carries the signal; a `space` that is given must "
        "say so itself, by max_ratio: 1.0",
    )

    out: Annotated[Path, PathText, _OUTPUT] = Field(Path("runs/search"), description="run directory")
    trials: Annotated[int, _SEARCH_LENGTH] = Field(
        32, ge=1, description="trials in total; raise it to extend a finished run"
    )
    sampler: Annotated[Literal["thompson", "tpe", "nsga2", "gp", "random", "qmc"], _SEARCH] = Field(
        "thompson",
        description="how trials are proposed: thompson (Thompson sampling) learns from them how much the "
        "importance of each group matters; the others are Optuna's",
    )
    warm_starts: Annotated[bool, _SEARCH] = Field(
        True,
        description="start with the policies of one-shot methods: uniform, then greedy, knapsack and "
        "global, the most promising first; at most 8 trials, or 3 per budget, and 1 or 2 a smaller size",
    )
    rungs: Annotated[tuple[int, ...], Several, _SEARCH] = Field(
        (0, 50), description="recovery steps at each rung, after the reconstruction; 0: reconstruction alone"
    )
    rung_keep: Annotated[float, _SEARCH] = Field(
        0.5, gt=0, le=1, description="fraction of the trials that is promoted from a rung to the next (1/η)"
    )
    racing: Annotated[bool, _SEARCH] = Field(
        False,
        description="stop the evaluation of a trial early, once another one of its budget that costs no more "
        "is known to be better",
    )
    proxy_images: Annotated[int | None, _SEARCH] = Field(
        None, ge=1, description="validation images for a proxy; default: all"
    )
    detection_precision: Annotated[Literal["auto", "float32", "bfloat16"], _SEARCH] = Field(
        "auto",
        description="precision in which trials are evaluated; auto: on CUDA bfloat16 where the dense mAP in "
        "it is within 0.1 points of float32, which is checked once; elsewhere float32",
    )
    confirm: Annotated[int, _SEARCH_LENGTH] = Field(
        4,
        ge=0,
        description="re-evaluations of the top candidates with another seed at the end of the search, at "
        "most, per budget, so that seed variance does not decide which is best; 0 turns it off",
    )
    check_proxies: Annotated[int, _SEARCH_LENGTH] = Field(
        0,
        ge=0,
        description="trials to recover in full after the search, to measure how well proxies rank policies",
    )
    storage: Annotated[str | None, PasswordText, _SEARCH] = Field(
        None,
        description="Optuna storage URL; default: a journal file in the run directory. Its password may be "
        f"given by {VARIABLE}, the same URL as an environment variable",
        repr=False,
    )
    track: Annotated[tuple[Track, ...], NoneIsEmpty, Several, _SEARCH_LENGTH] = Field(
        ("tensorboard",),
        description="where the driver logs metrics: tensorboard (in the run directory), mlflow (at "
        "MLFLOW_TRACKING_URI), or both; none turns it off",
    )

    engine: Annotated[Literal["local", "ray"], _ENGINE] = Field("local", description="where trials run")
    address: Annotated[str | None, _ENGINE] = Field(
        None,
        description="Ray: HOST:PORT of the cluster, ray://HOST:PORT from outside it, auto, or local; "
        "default: start Ray on this machine",
    )
    workers: Annotated[int, _ENGINE] = Field(
        1, ge=1, description="Ray: trials in parallel, as far as the nodes have resources"
    )
    cpus_per_trial: Annotated[float, _ENGINE] = Field(1.0, gt=0, description="Ray: CPUs per worker")
    gpus_per_trial: Annotated[float, _ENGINE] = Field(
        0.0, ge=0, description="Ray: GPUs per worker; workers with a fraction share a GPU"
    )

    steps: Annotated[int, _TRAINING_LENGTH] = Field(
        2000, ge=1, description="optimizer steps of a baseline or of a full recovery"
    )
    batch_size: Annotated[int, _TRAINING] = Field(
        8, ge=1, le=65_536, description="images per step, at most the number of training images"
    )
    learning_rate: Annotated[float | None, _TRAINING] = Field(
        None,
        gt=0,
        description="peak learning rate of AdamW; default: in a recovery, from the fraction of its mAP that "
        "the detector lost; of a baseline, 3e-4",
    )
    weight_decay: Annotated[float, _TRAINING] = Field(1e-4, ge=0, description="weight decay of AdamW")
    warmup: Annotated[float, _TRAINING] = Field(
        0.1, ge=0, le=1, description="fraction of the steps over which the learning rate warms up"
    )
    clip_norm: Annotated[float, _TRAINING] = Field(1.0, gt=0, description="gradient clipping: largest norm")
    augment: Annotated[bool, _TRAINING] = Field(
        False,
        description="scale, crop and recolor training images at random, beside the flips, in baselines and "
        "full recoveries; trials of a search do without",
    )
    norm: Annotated[Norm, _TRAINING] = Field(
        "auto",
        description="normalization layers of the backbone in training: freeze keeps them fixed "
        "(FrozenBatchNorm2d), train updates statistics and weights (BatchNorm2d), auto does what the weights "
        "were trained with; the conversion changes no output",
    )
    ema_decay: Annotated[float, _TRAINING] = Field(
        0.99, ge=0, lt=1, description="decay of the exponential moving average of the weights; 0 turns it off"
    )
    precision: Annotated[Literal["auto", "float32", "bfloat16"], _TRAINING] = Field(
        "auto",
        description="training precision; auto: bfloat16 on CUDA, float32 elsewhere; bfloat16 halves the time "
        "on CPUs with AMX, and runs as float32 on others",
    )
    distill: Annotated[float, _TRAINING] = Field(
        1.0, ge=0, description="weight of the feature distillation loss; 0 turns it off"
    )
    distill_weighting: Annotated[Literal["importance", "none"], _TRAINING] = Field(
        "importance", description="weights of the channels in the feature distillation; none: uniform"
    )
    distill_head: Annotated[bool, _TRAINING] = Field(
        True,
        description="distill what the prediction layers of a one-stage head read, too, by the same weight; "
        "it costs a forward pass of the dense head",
    )
    distill_logits: Annotated[float, _TRAINING] = Field(
        0.0,
        ge=0,
        description="weight of the distillation loss on the class logits of a one-stage head; 0 turns it "
        "off; it costs a forward pass of the dense head",
    )
    regrow_rounds: Annotated[int, _TRAINING] = Field(
        0,
        ge=0,
        description="rounds of regrowth before a recovery trains: each exchanges the least important kept "
        "channels for more important removed ones at no more GFLOPs; 0 turns it off",
    )
    reconstruct_images: Annotated[int, _TRAINING] = Field(
        32,
        ge=0,
        description="images for the reconstruction of pruned layers, by least squares on the dense layers' "
        "outputs, before training, fewer of large images (8.4 million pixels in all); 0: BatchNorm "
        "recalibration instead",
    )
    recalibration_images: Annotated[int, _TRAINING] = Field(
        128, ge=0, description="images for BatchNorm recalibration, behind layers that are not reconstructed"
    )

    device: Annotated[str, DeviceText, _HARDWARE] = Field("auto", description="cpu, cuda, cuda:1, or auto")
    threads: Annotated[int | None, _HARDWARE] = Field(
        None, ge=1, le=1024, description="CPU threads; default: torch's own choice"
    )
    seed: Annotated[int, _MACHINE] = Field(
        0, ge=0, lt=2**32, description="master seed; the same seed repeats a CPU run"
    )

    @property
    def norm_kind(self) -> Literal["auto"] | NormKind:
        """The kind of norms that ``norm`` stands for, as `detectors.load_dense` takes it."""
        kinds: dict[Norm, Literal["auto"] | NormKind]
        kinds = {"auto": "auto", "freeze": "frozen", "train": "batch"}
        return kinds[self.norm]

    @field_validator("*", mode="before")
    @classmethod
    def _not_empty(cls, value: Any) -> Any:
        """An empty value, as of a variable that is not set, is not the same as none given."""
        values = value if isinstance(value, list | tuple) else [value]
        if any(isinstance(each, str) and not each.strip() for each in values):
            raise ValueError("is empty; give a value, or omit it")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if "map" not in self.objectives:
            raise ValueError("objectives must hold map")
        if len({*self.objectives}) < len(self.objectives):
            raise ValueError("objectives holds one of them twice; name each once")
        if not self.rungs or list(self.rungs) != sorted(set(self.rungs)) or self.rungs[0] < 0:
            raise ValueError("rungs must increase, starting from 0 or more")
        if self.reconstruct_images == 1:
            raise ValueError("reconstruct_images must be 0 or at least 2, as some are held out")
        return self


SETTINGS: dict[str, Setting] = {
    name: next(item for item in field.metadata if isinstance(item, Setting))
    for name, field in Config.model_fields.items()
}
"""The metadata of each field of `Config`."""

MAY_CHANGE = frozenset(name for name, setting in SETTINGS.items() if setting.may_change)
"""Fields with which a run can be resumed at other values: where and how long, not what (see `run.origin`)."""


def make_config(**values: Any) -> Config:
    """Validates settings; those that are ``None`` take their default.

    Raises:
        ConfigError: a key is unknown (names the nearest ones) or a value is out of range.
    """
    return _validate({key: value for key, value in values.items() if value is not None}, "the settings")


def load_config(path: Path, **overrides: Any) -> Config:
    """Reads a YAML file of settings that the user gave; ``overrides`` that are not ``None`` win.

    Raises:
        ConfigError: the file can't be read or holds none, a key is unknown, or a value is out of range.
    """
    content = read_yaml(path)
    if not isinstance(content, dict) or not content:
        held = "nothing" if not content else f"a {type(content).__name__}"
        raise ConfigError(
            f"{path} must hold `field: value` lines, and holds {held}; omit it for the defaults"
        )
    content = with_new_keys(content, RENAMED, str(path))
    given = {key: value for key, value in overrides.items() if value is not None}
    return _validate({**content, **given}, str(path))


def _validate(values: dict[str, Any], where: str) -> Config:
    values = with_new_keys(values, RENAMED, where)
    if values.get("weights") is None and isinstance(model := values.get("model"), str):
        values = {**values, "weights": weights_of_vendor(model)}
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        raise ConfigError(first_problem(error, Config, where)) from error
