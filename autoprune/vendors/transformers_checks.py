"""Refuses what a config of Transformers may say and no detector can have: by its file and its field."""

import importlib.util
import math
import re
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from huggingface_hub import constants
from huggingface_hub.errors import OfflineModeIsEnabled

from autoprune.checkpoints.quantized import REMEDY
from autoprune.errors import ModelError

_LEFT_OUT = frozenset(
    {
        "_attn_implementation",
        "_attn_implementation_autoset",
        "_attn_implementation_internal",
        "_name_or_path",
        "anchor_image_size",
        "attn_implementation",
        "auto_map",
        "dtype",
        "experts_implementation",
        "label2id",
        "quantization_config",
        "torch_dtype",
        "transformers_version",
        "use_pretrained_backbone",
    }
)
"""Entries that decide nothing here, or that could fetch weights or kernels, or run code of others.

``anchor_image_size`` computes the anchors of one size ahead; without it they are those of the input.
"""
_PLAIN_NAME = re.compile(r"[\w.\-]+")
_COUNTS = re.compile(
    r"(|.*_)(num_queries|num_detection_tokens|num_proposals|num_labels|num_feature_levels|d_model|dim|dims|"
    r"hidden_sizes?|embedding_size|intermediate_size|image_size|patch_size|kernel_size|heads|strides?|"
    r"channels|depths|n_points|num_windows|group_detr|decoder_layers)"
)
"""Entries whose whole numbers count something that there must be at least one of."""
_ACTIVATIONS = re.compile(r"(.*_)?(activation(_function)?|act)")
"""Entries whose texts name an activation."""


def cleaned(value: Any, where: str, field: str = "") -> Any:
    """The same values without those that are not to be heeded, at any depth.

    Args:
        value: a config, or a value of one.
        where: its file, for messages.
        field: the value's place in the config; empty for the config itself.

    Raises:
        ModelError: a number is not finite, or one that must be at least 1 is below.
    """
    if isinstance(value, Mapping):
        inner = f"{field}." if field else ""
        return {
            key: cleaned(each, where, f"{inner}{key}") for key, each in value.items() if key not in _LEFT_OUT
        }
    if isinstance(value, float) and not math.isfinite(value):
        raise ModelError(f"{where}: `{field}` holds the number {value}; give finite ones")
    counts = _COUNTS.fullmatch(field.rpartition(".")[2])
    if counts and isinstance(value, int) and not isinstance(value, bool) and value < 1:
        raise ModelError(f"{where}: `{field}` holds {value}, and must be 1 or more")
    return [cleaned(each, where, field) for each in value] if isinstance(value, list | tuple) else value


def check_activations(config: Mapping[str, Any], known: Container[str], where: str, field: str = "") -> None:
    """Refuses an activation that the vendor does not know, at any depth.

    Args:
        config: it, or a config within it.
        known: the vendor's names.
        where: its file, for messages.
        field: the place of what is within, with a dot behind it.

    Raises:
        ModelError: names the first.
    """
    for key, value in config.items():
        if isinstance(value, Mapping):
            check_activations(value, known, where, f"{field}{key}.")
        elif isinstance(value, str) and _ACTIVATIONS.fullmatch(str(key)) and value not in known:
            raise ModelError(
                f"{where}: `{field}{key}` is {value!r}, which is no activation of Transformers; give one "
                "such as 'relu' or 'silu'"
            )


def check_names(config: Mapping[str, Any], where: str) -> None:
    """Refuses names of labels other than one for each index from 0.

    Raises:
        ModelError: there are none, an index is missing, twice there or no number, or a name is none.
    """
    names = config.get("id2label")
    if names is None:
        return
    if not isinstance(names, Mapping) or not names:
        raise ModelError(
            f"{where}: `id2label` must name each class by its label from 0, such as {{'0': 'cat'}}, not "
            f"{names!r}; restore what the detector was trained with"
        )
    try:
        indices = sorted(int(index) for index in names)
    except (TypeError, ValueError):
        indices = []
    if indices != list(range(len(names))):
        raise ModelError(
            f"{where}: `id2label` must name each label from 0 to {len(names) - 1} once, and has the keys "
            f"{', '.join(map(str, names))[:80]}"
        )
    for index, name in names.items():
        if not isinstance(name, str | int | float) or not str(name).strip():
            raise ModelError(f"{where}: `id2label` names label {index} {name!r}; give it a name")


def check_precision(config: Mapping[str, Any], where: str) -> None:
    """Refuses a config of quantized weights, which would be read without their scales.

    Raises:
        ModelError: see above.
    """
    if config.get("quantization_config"):
        raise ModelError(f"{where} has a `quantization_config`: its weights are quantized; {REMEDY}")


def check_backbone(config: Mapping[str, Any], where: str) -> None:
    """Refuses a backbone that is only named, as that of another repository would be fetched.

    Raises:
        ModelError: says how to describe it.
    """
    named, described = config.get("backbone"), config.get("backbone_config")
    if described is not None and not isinstance(described, Mapping):
        raise ModelError(f"{where}: `backbone_config` must be a mapping, not {described!r}")
    if described or named is None:
        return
    timm = config.get("use_timm_backbone", True) and "detr" in str(config["model_type"])
    if not timm or config.get("backbone_kwargs") or not _PLAIN_NAME.fullmatch(str(named)):
        raise only_named(named, where)


def only_named(backbone: Any, where: str) -> ModelError:
    """The error for a backbone that the vendor would look up in its hub."""
    return ModelError(
        f"{where} names its backbone {backbone!r} and does not describe it, and nothing is fetched here; "
        "load and save it once with the vendor's from_pretrained and save_pretrained, which write its "
        "`backbone_config`"
    )


def check_timm(name: str, where: str) -> None:
    """Refuses a backbone of timm where timm is not installed, and names that timm would fetch.

    Raises:
        ModelError: see above.
    """
    if not _PLAIN_NAME.fullmatch(name):
        raise ModelError(f"{where}: the backbone {name!r} is no model of timm's own; nothing is fetched here")
    if importlib.util.find_spec("timm") is None:
        raise ModelError(
            f"{where}: its backbone {name} is one of timm, which is not installed; pip install timm"
        )


@contextmanager
def offline() -> Iterator[None]:
    """No request reaches the hub within: the library raises `OfflineModeIsEnabled` before it looks it up."""
    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def would_fetch(error: BaseException | None) -> bool:
    """Whether an error is, or comes from, a request that `offline` kept from the hub."""
    while error is not None and not isinstance(error, OfflineModeIsEnabled):
        error = error.__cause__ or error.__context__
    return error is not None
