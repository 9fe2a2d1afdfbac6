"""The inputs of a detector: an example for one forward pass."""

import torch
from torch import Tensor

from autoprune.errors import ConfigError, out_of_memory


def detector_inputs(input_size: tuple[int, int], device: torch.device | str = "cpu") -> tuple[list[Tensor]]:
    """Arguments for one forward pass on one random image, float32 [3, height, width] in [0, 1].

    Raises:
        ConfigError: memory does not hold one such image.
    """
    height, width = input_size
    with out_of_memory(f"for one image of {height}x{width} pixels", "give a smaller input size", ConfigError):
        noise = torch.rand((3, height, width), generator=torch.Generator().manual_seed(0))
        return ([noise.to(device)],)
