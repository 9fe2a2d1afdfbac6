"""Small models with known structure, in the form of torchvision's detectors."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FrozenBatchNorm2d


class ToyDetector(nn.Module):
    """Two coupled producers (one with a norm), a reader of their sum, and a loss that can be linear.

    sum = norm(first(x)) + second(x);  output = last(act(sum));  loss = mean(output * target map) per image
    """

    def __init__(self, act: nn.Module, frozen: bool = False, width: int = 6) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm = FrozenBatchNorm2d(width) if frozen else nn.BatchNorm2d(width)
        self.second = nn.Conv2d(3, width, 1)
        self.act = act
        self.last = nn.Conv2d(width, 2, 3, padding=1)
        self.power = 1

    def forward(self, images: list[torch.Tensor], targets: list[dict] | None = None):
        x = torch.stack(images)
        out = self.last(self.act(self.norm(self.first(x)) + self.second(x)))
        if targets is None:
            return out
        maps = torch.stack([target["map"] for target in targets])
        return {"loss": ((out * maps) ** self.power).mean()}


def randomize(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives every parameter and norm statistic a random value."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.copy_(0.5 + noise.abs() if name.endswith("running_var") else noise * 0.3 + 0.1)
    return model


@pytest.fixture(scope="session")
def toy() -> Callable[..., nn.Module]:
    def make(act: nn.Module | None = None, frozen: bool = False, power: int = 1, seed: int = 0) -> nn.Module:
        model = randomize(ToyDetector(act or nn.Identity(), frozen), seed)
        model.power = power
        return model

    return make


@pytest.fixture(scope="session")
def toy_batches() -> Callable[..., Callable]:
    def make(images: int = 6, size: int = 2, seed: int = 0) -> Callable:
        generator = torch.Generator().manual_seed(seed)
        x = [torch.rand(3, 8, 8, generator=generator) for _ in range(images)]
        y = [{"map": torch.randn(2, 8, 8, generator=generator)} for _ in range(images)]
        return lambda: ((x[i : i + size], y[i : i + size]) for i in range(0, images, size))

    return make


class TinyBackbone(nn.Module):
    """A stem and one residual block at stride 8, then one FPN-like level."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 7, stride=8, padding=3, bias=False)
        self.stem_norm = norm(16)
        self.conv1 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm1 = norm(16)
        self.conv2 = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.norm2 = norm(16)
        self.lateral = nn.Conv2d(16, 16, 1)
        self.down = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.out_channels = 16

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        stem = self.stem_norm(self.stem(x)).relu_()
        block = self.norm2(self.conv2(self.norm1(self.conv1(stem)).relu_()))
        block += stem
        fine = self.lateral(block.relu_())
        return {"0": fine, "1": self.down(fine)}


@pytest.fixture(scope="session")
def detector() -> Callable[..., nn.Module]:
    """torchvision's RetinaNet on the tiny backbone: a head shared by two levels, in-place sums and ReLUs."""

    def make(norm: str) -> nn.Module:
        norms = {
            "batch": nn.BatchNorm2d,
            "frozen": FrozenBatchNorm2d,
            "group": lambda width: nn.GroupNorm(8, width),
        }
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = RetinaNet(
                TinyBackbone(norms[norm]),
                num_classes=3,
                min_size=64,
                max_size=64,
                anchor_generator=AnchorGenerator(((16, 24), (32, 48)), ((1.0,),) * 2),
            )
        for name, tensor in model.state_dict().items():
            if name.endswith("running_var"):
                tensor.copy_(torch.linspace(0.5, 2, len(tensor)))
        return model

    return make


@pytest.fixture(scope="session")
def detector_batches() -> Callable:
    generator = torch.Generator().manual_seed(1)
    images = [torch.rand(3, 64, 64, generator=generator) for _ in range(4)]
    boxes = [[[4.0, 4, 30, 30], [20, 30, 60, 62]], [[10.0, 10, 40, 30]], [], [[0.0, 0, 20, 24]]]
    targets = [
        {
            "boxes": torch.tensor(box).reshape(-1, 4),
            "labels": torch.ones(len(box), dtype=torch.int64),
            "image_id": number,
        }
        for number, box in enumerate(boxes)
    ]
    return lambda: [(images[:3], targets[:3]), (images[3:], targets[3:])]


class Net(nn.Module):
    """A 3x3 convolution is read by another, at two levels, with ReLUs in place behind both."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 2, 3, stride=2, padding=1)

    def forward(self, images, targets=None):
        x = torch.stack(images)
        outputs = [self.second(self.first(level).relu_()).relu_() for level in (x, x[..., ::2, ::2])]
        if targets is None:
            return outputs
        return {"loss": sum(output.square().mean() for output in outputs)}


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(2)
    nothing = {"boxes": torch.zeros(0, 4)}
    return [([torch.rand(3, 8, 8, generator=generator)], [nothing]) for _ in range(3)]
