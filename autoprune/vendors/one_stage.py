"""RetinaNet and FCOS of torchvision on any backbone with a feature pyramid, with their anchors."""

from collections.abc import Sequence
from functools import partial
from typing import Any, cast

from torch import nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.fcos import FCOS
from torchvision.models.detection.retinanet import RetinaNet, RetinaNetHead

AnchorSizes = Sequence[float | Sequence[float]]


def one_stage_detector(
    family: str,
    backbone: nn.Module,
    num_classes: int,
    strides: Sequence[int],
    min_size: int = 800,
    max_size: int = 1333,
    anchor_sizes: AnchorSizes | None = None,
    **detector_arguments: Any,
) -> nn.Module:
    """A detector with torchvision's head for a backbone.

    Args:
        family: ``retinanet``, ``retinanet_v2`` or ``fcos``.
        backbone: gives a dict of feature maps with ``out_channels`` channels each.
        num_classes: background included.
        strides: of the feature maps, in pixels.
        min_size: pixels of the resized image's shorter side.
        max_size: limit on the pixels of its longer side.
        anchor_sizes: in pixels, one entry per level; to a single number RetinaNet adds anchors of 2^(1/3) and
            2^(2/3) times the size. By default 4 times the level's stride for RetinaNet, the stride for FCOS.
        **detector_arguments: to torchvision's class, such as ``score_thresh``.

    Raises:
        ValueError: ``anchor_sizes`` has not one entry per level.
    """
    if not isinstance(anchor_sizes, Sequence | None):
        raise ValueError(f"anchor_sizes needs {len(strides)} entries, one per level, not {anchor_sizes!r}")
    scale, ratios = (1, (1.0,)) if family == "fcos" else (4, (0.5, 1.0, 2.0))
    bases = [scale * stride for stride in strides] if anchor_sizes is None else list(anchor_sizes)
    if len(bases) != len(strides):
        raise ValueError(f"anchor_sizes needs {len(strides)} entries, one per level, not {len(bases)}")
    octaves = (0,) if family == "fcos" else (0, 1, 2)
    sizes = tuple(
        tuple(base) if isinstance(base, Sequence) else tuple(int(base * 2 ** (o / 3)) for o in octaves)
        for base in bases
    )
    anchors = AnchorGenerator(sizes, (ratios,) * len(sizes))
    given = {"min_size": min_size, "max_size": max_size, "anchor_generator": anchors, **detector_arguments}
    if family == "fcos":
        return cast(nn.Module, FCOS(backbone, num_classes, **given))
    if family == "retinanet":
        return cast(nn.Module, RetinaNet(backbone, num_classes, **given))
    channels = cast(int, backbone.out_channels)
    head = RetinaNetHead(
        channels, len(sizes[0]) * len(ratios), num_classes, norm_layer=partial(nn.GroupNorm, 32)
    )
    head.regression_head._loss_type = "giou"
    return cast(nn.Module, RetinaNet(backbone, num_classes, head=head, **given))
