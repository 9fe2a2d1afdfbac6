"""The inputs of a detector: how it resizes images, and an example for one forward pass."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from autoprune.errors import ConfigError, out_of_memory


@dataclass(frozen=True)
class Resize:
    """How a detector resizes its input.

    Attributes:
        min_size: pixels of the shorter side.
        max_size: limit on the pixels of the longer side.
        fixed: (height, width) that every image is stretched to, instead of the two above.
    """

    min_size: int | None = None
    max_size: int | None = None
    fixed: tuple[int, int] | None = None


def resize_rule(model: nn.Module) -> Resize | None:
    """Reads the detector's resizing from ``model.transform``; ``None`` where it has none."""
    transform = getattr(model, "transform", None)
    if (fixed := getattr(transform, "fixed_size", None)) is not None:
        return Resize(fixed=(int(fixed[1]), int(fixed[0])))  # torchvision stores (width, height)
    min_size, max_size = getattr(transform, "min_size", None), getattr(transform, "max_size", None)
    if min_size is None or max_size is None:
        return None
    shorter = min_size[-1] if isinstance(min_size, list | tuple) else min_size  # used in eval mode
    return Resize(int(shorter), int(max_size))


def detector_inputs(input_size: tuple[int, int], device: torch.device | str = "cpu") -> tuple[list[Tensor]]:
    """Arguments for one forward pass on one random image, float32 [3, height, width] in [0, 1].

    Raises:
        ConfigError: memory does not hold one such image.
    """
    height, width = input_size
    with out_of_memory(f"for one image of {height}x{width} pixels", "give a smaller input size", ConfigError):
        noise = torch.rand((3, height, width), generator=torch.Generator().manual_seed(0))
        return ([noise.to(device)],)
