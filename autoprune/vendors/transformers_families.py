"""The kinds of detectors of Transformers that autoprune takes, and their architectures from plain values."""

import json
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import transformers
from transformers.activations import ACT2FN
from transformers.utils import logging

from autoprune.errors import ModelError
from autoprune.vendors.table import TESTED
from autoprune.vendors.transformers_checks import (
    check_activations,
    check_backbone,
    check_names,
    check_timm,
    cleaned,
    offline,
    only_named,
    would_fetch,
)
from autoprune.vendors.transformers_detector import Grid, Select


@dataclass(frozen=True)
class Family:
    """What the detectors of one ``model_type`` have in common.

    Attributes:
        model: name of their class.
        processor: name of the image processor that they were trained with.
        select: makes detections of logits and boxes, as the processor does.
        features: modules whose outputs the encoder or the decoder reads; ``*`` stands for each of a list.
        masked: whether they take a mask of the padding.
    """

    model: str
    processor: str
    select: Select
    features: tuple[str, ...]
    masked: bool = True


_RT = ("model.decoder_input_proj.*",)
FAMILIES: dict[str, Family] = {
    "detr": Family(
        "DetrForObjectDetection", "DetrImageProcessor", Select(softmax=True), ("model.input_projection",)
    ),
    "conditional_detr": Family(
        "ConditionalDetrForObjectDetection",
        "ConditionalDetrImageProcessor",
        Select(count=100),
        ("model.input_projection",),
    ),
    "deformable_detr": Family(
        "DeformableDetrForObjectDetection",
        "DeformableDetrImageProcessor",
        Select(count=100),
        ("model.input_proj.*",),
    ),
    "rt_detr": Family("RTDetrForObjectDetection", "RTDetrImageProcessor", Select(), _RT),
    "rt_detr_v2": Family("RTDetrV2ForObjectDetection", "RTDetrImageProcessor", Select(), _RT),
    "d_fine": Family("DFineForObjectDetection", "RTDetrImageProcessor", Select(), _RT),
    "rf_detr": Family(
        "RfDetrForObjectDetection", "RfDetrImageProcessor", Select(), ("model.backbone.projector",)
    ),
    "yolos": Family("YolosForObjectDetection", "YolosImageProcessor", Select(softmax=True), (), masked=False),
}


def family_of(config: Mapping[str, Any], where: str) -> Family:
    """The family of a config.

    Raises:
        ModelError: it is none of `FAMILIES`, is for another task, or the installed version lacks it.
    """
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ModelError(
            f"{where} describes no detector that is known here: `model_type` is {kind!r}, and must be one of "
            f"{', '.join(FAMILIES)}"
        )
    family = FAMILIES[kind]
    classes = config.get("architectures") or [family.model]
    if family.model not in classes:
        raise ModelError(f"{where} is for a {classes[0]}, which is of another task; give a {family.model}")
    if not hasattr(transformers, family.model):
        raise ModelError(
            f"transformers {transformers.__version__} has no {family.model}; {TESTED['transformers']} does: "
            "pip install --upgrade transformers"
        )
    return family


def configuration(config: Mapping[str, Any], where: str) -> Any:
    """The vendor's config of a dict, such as that of a ``config.json``; nothing is fetched or run.

    Args:
        config: it; what it does not say gets the vendor's defaults.
        where: its file, for messages.

    Raises:
        ModelError: it is of no known family, holds wrong values, or has a backbone that can't be built.
    """
    family = family_of(config, where)
    plain = cleaned(config, where)
    check_backbone(plain, where)
    check_names(plain, where)
    check_activations(plain, ACT2FN, where)
    kind = getattr(transformers, family.model).config_class
    try:
        with quiet():
            made = kind.from_dict(plain)
    except Exception as error:  # the vendor's checks raise errors of many kinds
        if would_fetch(error):
            raise only_named(plain.get("backbone"), where) from error
        problem = f"no {error} is known" if isinstance(error, KeyError) else " ".join(f"{error}".split())
        raise ModelError(
            f"{where} is no valid {kind.__name__}: {problem[:200]}; correct it there, or restore the file"
        ) from error
    backbone: Any = getattr(made, "backbone_config", None)
    if getattr(backbone, "model_type", None) == "timm_backbone":
        check_timm(str(backbone.backbone), where)
    return made


def plain_values(config: Any) -> dict[str, Any]:
    """A vendor's config as plain values for YAML, complete, so that later defaults change nothing."""
    values: dict[str, Any] = cleaned(json.loads(config.to_json_string(use_diff=False)), "the config")
    values["id2label"] = {int(index): str(name) for index, name in config.id2label.items()}
    return values


def names_of(config: Any) -> dict[int, str]:
    """The names of the labels, which are one more than the vendor's indices; empty where it has none."""
    names = {int(index): str(name) for index, name in config.id2label.items()}
    if all(name == f"LABEL_{index}" for index, name in names.items()):
        return {}
    return {index + 1: name for index, name in names.items()}


def feature_names(family: Family, names: Sequence[str]) -> list[str]:
    """Those of the modules' names that a family's patterns match."""
    patterns = [re.compile(re.escape(each).replace(r"\*", r"\d+")) for each in family.features]
    return [name for name in names if any(pattern.fullmatch(name) for pattern in patterns)]


def grid_of(config: Any) -> Grid | None:
    """What a detector asks of the size of its input; ``None`` where any size will do."""
    kind = config.model_type
    if kind in ("rt_detr", "rt_detr_v2", "d_fine"):
        strides = [*config.feat_strides]
        while len(strides) < config.num_feature_levels:
            strides.append(strides[-1] * 2)
        return Grid(max(config.feat_strides), tuple(strides), config.num_queries)
    if kind == "rf_detr":
        patch = config.backbone_config.patch_size
        windows = getattr(config.backbone_config, "num_windows", 1)
        return Grid(patch * windows, (patch,), config.num_queries) if isinstance(patch, int) else None
    if kind == "deformable_detr" and config.two_stage:
        levels = config.num_feature_levels
        strides = [8 * 2**level for level in range(levels)] if levels > 1 else [32]
        return Grid(1, tuple(strides), config.two_stage_num_proposals)
    return None


@contextmanager
def quiet() -> Iterator[None]:
    """Silences the library's own notes, warnings and progress bars, and keeps it from asking its hub.

    What matters becomes an error here.
    """
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings(), offline():
            warnings.filterwarnings("ignore", module=r"transformers\.")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
