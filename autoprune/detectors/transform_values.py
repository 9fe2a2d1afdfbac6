"""Refuses arguments that torchvision's detectors take without a look, and can't be computed with."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from autoprune.errors import ModelError
from autoprune.resize import LARGEST

_SIZE = f"whole numbers from 1 to {LARGEST}"


def refuse_bad_values(name: str, model: nn.Module) -> None:
    """Refuses a detector whose transform or anchors can't be computed with.

    Args:
        name: of the detector, for messages.
        model: the detector; one without torchvision's transform or anchors passes.

    Raises:
        ModelError: a size, a mean, a standard deviation or an anchor is out of range.
    """
    transform = getattr(model, "transform", None)
    if isinstance(transform, GeneralizedRCNNTransform):
        _refuse(name, transform, ("min_size", "max_size", "fixed_size", "size_divisible"), _is_size, _SIZE)
        size = transform.fixed_size
        if size is not None and not (isinstance(size, list | tuple) and len(size) == 2):
            where = "--model-arguments, YAML: model_arguments"
            raise ModelError(f"{name}: fixed_size is {size!r}; give [width, height] ({where})")
        _refuse(name, transform, ("image_mean",), _is_finite, "finite numbers")
        _refuse(name, transform, ("image_std",), _is_positive, "numbers above 0")
    for module in model.modules():
        if isinstance(module, AnchorGenerator):
            _refuse(name, module, ("sizes", "aspect_ratios"), _is_positive, "numbers above 0")


def _refuse(
    name: str, holder: nn.Module, fields: Iterable[str], fits: Callable[[Any], bool], instead: str
) -> None:
    for field in fields:
        value = getattr(holder, field, None)
        if value is not None and not all(map(fits, _leaves(value))):
            what = "the anchors' " if isinstance(holder, AnchorGenerator) else ""
            where = "--model-arguments, YAML: model_arguments"
            raise ModelError(f"{name}: {what}{field} is {value!r}; give {instead} ({where})")


def _leaves(value: Any) -> list[Any]:
    """The values of nested lists, tensors or arrays; an empty list is a value that fits nothing."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if not isinstance(value, list | tuple):
        return [value]
    return [leaf for each in value for leaf in _leaves(each)] or [None]


def _is_size(value: Any) -> bool:
    return _is_finite(value) and value == int(value) and 1 <= value <= LARGEST


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0
