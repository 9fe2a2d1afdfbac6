"""The inputs of a detector: an example for one forward pass, and what its ``transform`` makes of images."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from autoprune.errors import ConfigError, out_of_memory
from autoprune.vendors import DetectorTransform


def detector_inputs(input_size: tuple[int, int], device: torch.device | str = "cpu") -> tuple[list[Tensor]]:
    """Arguments for one forward pass on one random image, float32 [3, height, width] in [0, 1].

    Raises:
        ConfigError: memory does not hold one such image.
    """
    height, width = input_size
    with out_of_memory(f"for one image of {height}x{width} pixels", "give a smaller input size", ConfigError):
        noise = torch.rand((3, height, width), generator=torch.Generator().manual_seed(0))
        return ([noise.to(device)],)


def prepared(
    model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]] | None = None
) -> tuple[ImageList, list[dict[str, Any]] | None] | None:
    """The batch that a detector's child ``transform`` makes of images, as torchvision's and vendors' have it.

    Args:
        model: the detector.
        images: of each, [3, h, w] in [0, 1].
        targets: of each, ``boxes`` [k, 4] in its pixels.

    Returns:
        The batch, and the targets with boxes in pixels of the batch; ``None`` without such a child.
    """
    transform = getattr(model, "transform", None)
    return transform(images, targets) if isinstance(transform, nn.Module) else None


def network_size(model: nn.Module, size: tuple[int, int]) -> tuple[int, int]:
    """Height and width of what the network sees of an image: resized and padded, if its transform says so.

    Args:
        model: the detector.
        size: height and width of the image.
    """
    if not isinstance(getattr(model, "transform", None), GeneralizedRCNNTransform | DetectorTransform):
        return size
    batch = prepared(model, list(detector_inputs(size)[0]))
    assert batch is not None
    height, width = batch[0].tensors.shape[-2:]
    return int(height), int(width)


def size_text(model: nn.Module, size: tuple[int, int]) -> str:
    """The size of an image, and that of the network's input where it differs, for messages."""
    return sizes_text(size, network_size(model, size))


def sizes_text(size: Sequence[int], seen: Sequence[int]) -> str:
    """As `size_text`, of an image's size and what `network_size` says of it."""
    text = "{}x{}".format(*size)
    return (
        text if list(seen) == list(size) else f"{text}, which the detector itself makes {seen[0]}x{seen[1]}"
    )


def image_corner(model: nn.Module, size: tuple[int, int], batch: tuple[int, int]) -> tuple[int, int]:
    """Pixels above and left of an image in the batch that a detector's ``transform`` makes of it.

    Args:
        model: the detector.
        size: height and width of the image in there.
        batch: those of the batch.
    """
    offset = getattr(getattr(model, "transform", None), "offset", None)  # torchvision's always begin at 0, 0
    return (0, 0) if offset is None else offset(size, batch)


def stride(model: nn.Module) -> int | None:
    """What the detector pads its input to a multiple of; ``None`` where it does not say."""
    multiple = getattr(getattr(model, "transform", None), "size_divisible", 1)
    return int(multiple) if multiple > 1 else None


def smallest_anchor(model: nn.Module) -> float:
    """Pixels of the smallest anchor's side; 0 for a detector without anchors in pixels."""
    sizes = [
        size
        for module in model.modules()
        if isinstance(module, AnchorGenerator)
        for level in module.sizes
        for size in level
    ]
    return float(min(sizes, default=0))
