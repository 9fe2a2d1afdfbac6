"""Refuses arguments that torchvision's detectors take without a look, and can't be computed with."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork
from torchvision.models.detection.ssd import SSD
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from autoprune.errors import ModelError
from autoprune.resize import LARGEST

_SIZE = f"whole numbers from 1 to {LARGEST}"
_DECODING = (RetinaNet, FCOS, SSD, RegionProposalNetwork, RoIHeads)


def refuse_bad_values(name: str, model: nn.Module) -> None:
    """Refuses a detector whose transform, anchors or decoding can't be computed with.

    Args:
        name: of the detector, for messages.
        model: the detector; one without torchvision's transform, anchors or decoding passes.

    Raises:
        ModelError: a size, a mean, a standard deviation, an anchor, a threshold or a number of boxes is out
            of range.
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
        elif isinstance(module, _DECODING):
            _refuse_decoding(name, module)


def _refuse_decoding(name: str, module: nn.Module) -> None:
    """Refuses thresholds and counts that torchvision slices and compares with, whatever they are."""
    _refuse(name, module, ("score_thresh",), _is_score, "a number from 0, below 1")
    _refuse(name, module, ("nms_thresh",), _is_fraction, "a number from 0 to 1")
    counts = ("detections_per_img", "topk_candidates", "_pre_nms_top_n", "_post_nms_top_n")
    _refuse(name, module, counts, _is_count, "a whole number from 1")
    _refuse(name, module, ("center_sampling_radius", "neg_to_pos_ratio"), _is_positive, "a number above 0")
    if matcher := getattr(module, "proposal_matcher", None):
        _refuse(name, matcher, ("high_threshold", "low_threshold"), _is_fraction, "numbers from 0 to 1")
    if sampler := getattr(module, "fg_bg_sampler", None):
        _refuse(name, sampler, ("batch_size_per_image",), _is_count, "a whole number from 1")
        _refuse(name, sampler, ("positive_fraction",), _is_fraction, "a number from 0 to 1")


def _refuse(
    name: str, holder: object, fields: Iterable[str], fits: Callable[[Any], bool], instead: str
) -> None:
    for field in fields:
        value = getattr(holder, field, None)
        if value is not None and not all(map(fits, _leaves(value))):
            what = "the anchors' " if isinstance(holder, AnchorGenerator) else ""
            where = "--model-arguments, YAML: model_arguments"
            raise ModelError(f"{name}: {what}{field.strip('_')} is {value!r}; give {instead} ({where})")


def _leaves(value: Any) -> list[Any]:
    """The values of nested lists, tensors or arrays; an empty list is a value that fits nothing."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, dict):  # of the RPN, in training and in evaluation
        value = list(value.values())
    if not isinstance(value, list | tuple):
        return [value]
    return [leaf for each in value for leaf in _leaves(each)] or [None]


def _is_size(value: Any) -> bool:
    return _is_finite(value) and value == int(value) and 1 <= value <= LARGEST


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_fraction(value: Any) -> bool:
    return _is_finite(value) and 0 <= value <= 1


def _is_score(value: Any) -> bool:
    return _is_fraction(value) and value < 1


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_positive(value: Any) -> bool:
    return _is_finite(value) and value > 0
