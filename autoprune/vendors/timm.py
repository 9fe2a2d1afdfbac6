"""RetinaNet and FCOS of torchvision on the backbones of timm, with fresh weights."""

import difflib
import inspect
import warnings
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from timm import create_model, is_model, list_models
from torch import Tensor, nn
from torchvision.models.detection import FCOS, RetinaNet
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelP6P7

from autoprune.checkpoints.read import read_checkpoint
from autoprune.errors import ModelError, is_out_of_memory
from autoprune.vendors.one_stage import one_stage_detector
from autoprune.vendors.table import Description

DETECTORS = {"retinanet": RetinaNet, "fcos": FCOS}
STRIDES = (8, 16, 32)
"""Of the feature maps of a backbone that are read; two coarser ones are added on top."""
COCO_CLASSES = 91  # as many as torchvision's weights have, with the background
OWN = ("detector", "fpn_channels", "anchor_sizes")
NOT_GIVEN = {"self", "args", "kwargs", "backbone", "num_classes", "anchor_generator", "head"}
NORM_GROUPS = 32
"""Of the group norms in torchvision's FCOS."""
PROBED = (64, 96)
"""Height and width of the image that a backbone is tried with."""


class Pyramid(nn.Module):
    """A backbone of timm with a feature pyramid.

    Args:
        body: gives a list of feature maps.
        channels: of those at `STRIDES`, by their places in the list.
        last: whether their channels are the last axis.
        fpn_channels: channels of the results.
    """

    def __init__(self, body: nn.Module, channels: Mapping[int, int], last: bool, fpn_channels: int) -> None:
        super().__init__()
        self.body = body
        extra = LastLevelP6P7(fpn_channels, fpn_channels)
        self.fpn = FeaturePyramidNetwork(list(channels.values()), fpn_channels, extra_blocks=extra)
        self.places, self.last, self.out_channels = tuple(channels), last, fpn_channels

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Feature maps [n, `out_channels`, h, w] by level, the finest first."""
        maps = self.body(images)
        read = [maps[place].permute(0, 3, 1, 2) if self.last else maps[place] for place in self.places]
        pyramid: dict[str, Tensor] = self.fpn(OrderedDict((str(i), each) for i, each in enumerate(read)))
        return pyramid


def describe(source: str, arguments: Mapping[str, Any]) -> Description:
    """Takes the name of a backbone.

    Args:
        source: a name of ``timm.list_models()``.
        arguments: ``detector``, ``retinanet`` (default) or ``fcos``; ``fpn_channels``, 256;
            ``anchor_sizes``, ``min_size``, ``max_size`` and others of torchvision's classes.

    Raises:
        ModelError: timm has no such model.
    """
    name = source
    if (other := arguments.get("backbone", name)) != name:
        raise ModelError(
            f"model_arguments: backbone is {other!r}, and the model is timm:{name}; omit backbone, or give "
            f"--model timm:{other}"
        )
    base, _, tag = name.partition(".")
    if is_model(base) and tag:
        raise ModelError(
            f"timm:{name} names pretrained weights, which are not fetched; give timm:{base}, and a "
            "checkpoint of the whole detector with --weights"
        )
    if not is_model(name):
        near = difflib.get_close_matches(name.lower(), list_models(), n=3)
        hint = f"did you mean {', '.join(f'timm:{each}' for each in near)}? " if near else ""
        raise ModelError(f"timm has no model {name!r}; {hint}timm.list_models() names all")
    return Description({"backbone": name, **arguments}, COCO_CLASSES)


def read_weights(path: Path) -> Any:
    """The tensors of a checkpoint of the whole detector; see `read_checkpoint`."""
    return read_checkpoint(path)


def build(arguments: Mapping[str, Any], num_classes: int) -> nn.Module:
    """A detector with fresh weights.

    Raises:
        ModelError: an argument is wrong, or the backbone lacks feature maps at `STRIDES`.
    """
    given = dict(arguments)
    name, family = given.pop("backbone"), given.pop("detector", "retinanet")
    if family not in DETECTORS:
        raise ModelError(f"model_arguments: detector is {family!r}; give {' or '.join(DETECTORS)}")
    readers = (one_stage_detector, DETECTORS[family], GeneralizedRCNNTransform)
    valid = {each for reader in readers for each in inspect.signature(reader).parameters} | {*OWN}
    valid -= {*NOT_GIVEN, "family", "strides", "detector_arguments"}
    if unknown := sorted(given.keys() - valid):
        near = difflib.get_close_matches(unknown[0], valid, n=3) or sorted(valid)
        raise ModelError(f"model_arguments: timm:{name} has no `{unknown[0]}`; valid: {', '.join(near)}")
    channels = given.pop("fpn_channels", 256)
    if not _is_side(channels):
        raise ModelError(f"model_arguments: fpn_channels is {channels!r}; give a whole number from 1")
    if family == "fcos" and channels % NORM_GROUPS:
        raise ModelError(
            f"model_arguments: fpn_channels is {channels}; the norms of FCOS need a multiple of {NORM_GROUPS}"
        )
    size: Any = given.get("fixed_size")
    if size is not None and not (
        isinstance(size, list | tuple) and len(size) == 2 and all(map(_is_side, size))
    ):
        raise ModelError(
            f"model_arguments: fixed_size is {size!r}; give [width, height], whole numbers from 1"
        )
    backbone = _pyramid(name, channels, size)
    strides = [*STRIDES, 2 * STRIDES[-1], 4 * STRIDES[-1]]
    return one_stage_detector(family, backbone, num_classes, strides, **given)


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _pyramid(name: str, fpn_channels: int, fixed_size: Sequence[int] | None) -> Pyramid:
    body = _body(name)
    strides, widths = body.feature_info.reduction(), body.feature_info.channels()
    places = [len(strides) - 1 - strides[::-1].index(each) for each in STRIDES if each in strides]
    if len(places) < len(STRIDES):
        raise ModelError(
            f"timm:{name} has feature maps at strides {', '.join(map(str, strides))}, and a pyramid is built "
            f"on {', '.join(map(str, STRIDES))}; give a backbone of stages such as timm:resnet18"
        )
    last = str(getattr(body, "output_fmt", "")) in ("NHWC", "Format.NHWC")
    pyramid = Pyramid(body, {place: widths[place] for place in places}, last, fpn_channels)
    height, width = PROBED if fixed_size is None else (fixed_size[1], fixed_size[0])
    try:
        with torch.no_grad():
            pyramid.eval()(torch.zeros(1, 3, height, width))
    except Exception as error:  # whatever a backbone raises for a size that it does not take
        if is_out_of_memory(error):
            raise
        problem = " ".join(str(error).split())[:160]
        raise ModelError(
            f"timm:{name} can't take an image of {height}x{width} ({problem}); give its own size with "
            "model_arguments `fixed_size`, [width, height], or another backbone"
        ) from error
    return pyramid.train()


def _body(name: str) -> Any:
    """The stages of a model; those that fix the size of images by default take any where they can.

    Raises:
        ModelError: timm can't give its feature maps.
    """
    try:
        with warnings.catch_warnings(action="ignore"):  # of deprecated names, and registrations
            try:
                return create_model(name, pretrained=False, features_only=True, strict_img_size=False)
            except TypeError:  # most models have no such argument, as they take any size
                return create_model(name, pretrained=False, features_only=True)
    except Exception as error:  # models raise what they like
        if is_out_of_memory(error):
            raise
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise ModelError(
            f"timm:{name} gives no feature maps ({problem}); give a backbone of stages such as timm:resnet18"
        ) from error
