"""A small detector, as after a training, and what its tests compare."""

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from autoprune import detectors
from autoprune.config import ModelSpec
from autoprune.errors import ModelError

SMALL = {"min_size": 64, "max_size": 64, "fpn_channels": 32, "returned_layers": [2, 3]}


def small(classes: int = 4, norm: str = "batch", name: str = "retinanet_resnet18_fpn") -> nn.Module:
    return detectors.build(ModelSpec(name=name, arguments=SMALL, num_classes=classes, norm=norm))


def shake(model: nn.Module) -> nn.Module:
    """Gives the norms statistics and weights as after a training."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | FrozenBatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -1, 1),
                (module.running_var, 0.1, 3),
                (module.weight.data, 0.5, 2),
                (module.bias.data, -1, 1),
            ):
                tensor.uniform_(low, high)
    return model


@torch.no_grad()
def features(model: nn.Module) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return list(model.eval().backbone(torch.rand((1, 3, 64, 64), generator=generator)).values())


def assert_same(maps: list[torch.Tensor], expected: list[torch.Tensor]) -> None:
    """Equal to round-off, relative to the largest value of each feature map."""
    for a, b in zip(maps, expected, strict=True):
        assert b.abs().max() > 0
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def one_line(error: pytest.ExceptionInfo[ModelError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
