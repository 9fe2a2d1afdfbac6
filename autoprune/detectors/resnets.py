"""Autoprune's own detectors: RetinaNet and FCOS on ResNet-18 and 34, built from torchvision's parts."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import nn
from torchvision.models import resnet
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from autoprune.vendors.one_stage import AnchorSizes, one_stage_detector


def resnet_detector(
    depth: int,
    family: str,
    num_classes: int,
    min_size: int = 800,
    max_size: int = 1333,
    fpn_channels: int = 256,
    returned_layers: Sequence[int] = (2, 3, 4),
    anchor_sizes: AnchorSizes | None = None,
    base_width: int = 64,
    **detector_arguments: Any,
) -> nn.Module:
    """A RetinaNet, RetinaNet v2 or FCOS on ResNet-18 or 34, with the layout of torchvision's on ResNet-50.

    Args:
        depth: 18 or 34.
        family: ``retinanet``, ``retinanet_v2`` or ``fcos``.
        num_classes: background included.
        min_size: pixels of the resized image's shorter side.
        max_size: limit on the pixels of its longer side.
        fpn_channels: channels of the FPN and of the heads.
        returned_layers: consecutive ResNet stages, 1 to 4, that feed the FPN; two coarser levels are added
            on top.
        anchor_sizes: in pixels, one entry per level; to a single number RetinaNet adds anchors of 2^(1/3) and
            2^(2/3) times the size. By default 4 times the level's stride for RetinaNet, the stride for FCOS.
        base_width: channels of the ResNet's first layer, 64 in torchvision's; the other layers have
            ``base_width / 64`` of torchvision's channels, too.
        **detector_arguments: to torchvision's class, such as ``score_thresh``.
    """
    layers = list(returned_layers)
    if not layers or layers != list(range(layers[0], layers[-1] + 1)) or layers[0] < 1 or layers[-1] > 4:
        raise ValueError(
            f"returned_layers must be consecutive stages from 1 to 4, such as [2, 3, 4], not {layers}"
        )
    body = getattr(resnet, f"resnet{depth}")(weights=None, norm_layer=nn.BatchNorm2d)
    if base_width != 64:
        _scale_width(body, base_width)
    widths = [base_width * 2 ** (layer - 1) for layer in layers]
    extra = LastLevelP6P7(widths[-1] if family == "retinanet_v2" else fpn_channels, fpn_channels)
    outputs = {f"layer{layer}": str(index) for index, layer in enumerate(layers)}
    backbone = BackboneWithFPN(body, outputs, widths, fpn_channels, extra_blocks=extra)

    strides = [2 ** (layers[0] + 1 + level) for level in range(len(layers) + 2)]
    return one_stage_detector(
        family, backbone, num_classes, strides, min_size, max_size, anchor_sizes, **detector_arguments
    )


def _scale_width(body: nn.Module, base_width: int) -> None:
    """Gives every layer of a torchvision ResNet ``base_width / 64`` of its channels, with fresh weights.

    In place, because the constructor of torchvision's ResNet has its widths as literals.
    """
    if base_width < 1:
        raise ValueError(f"base_width must be at least 1, not {base_width}")
    for name, layer in list(body.named_modules()):
        scaled: nn.Module
        if isinstance(layer, nn.Conv2d):
            inputs = 3 if layer.in_channels == 3 else layer.in_channels * base_width // 64
            outputs = layer.out_channels * base_width // 64
            kernel, stride, padding = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
            scaled = nn.Conv2d(inputs, outputs, kernel, stride, padding, bias=False)
            nn.init.kaiming_normal_(scaled.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            scaled = nn.BatchNorm2d(layer.num_features * base_width // 64)
        else:
            continue
        parent, _, child = name.rpartition(".")
        setattr(body.get_submodule(parent), child, scaled)


OWN: dict[str, Callable[..., nn.Module]] = {
    f"{family.removesuffix('_v2')}_resnet{depth}_fpn{'_v2' if family.endswith('_v2') else ''}": partial(
        resnet_detector, depth, family
    )
    for family in ("retinanet", "retinanet_v2", "fcos")
    for depth in (18, 34)
}
"""Builders of autoprune's own detectors, by name."""
