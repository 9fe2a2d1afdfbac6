"""A small detector, as after a training, what its tests compare, and a package of a user."""

import sys

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


@pytest.fixture
def my_package(tmp_path, monkeypatch):
    """A folder with the module `mydetector`, as the current folder."""
    (tmp_path / "mydetector.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def sized(num_classes, width=4):\n    return nn.Conv2d(3, width * num_classes, 1)\n"
        "def fixed(width=4):\n    return nn.Conv2d(3, width, 1)\n"
        "def any_of(**kwargs):\n    return nn.Conv2d(3, kwargs['num_classes'], 1)\n"
        "def broken():\n    raise RuntimeError('two\\nlines')\n"
        "def text():\n    return 'a model'\n"
        "number = 3\n"
    )
    (tmp_path / "brokenmodule.py").write_text("import no_such_library\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    yield tmp_path
    for name in ("mydetector", "brokenmodule"):
        sys.modules.pop(name, None)
