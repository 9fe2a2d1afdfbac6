"""A toy detector and a toy split, so that a training step takes a millisecond."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.models.detection import RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.transform import GeneralizedRCNNTransform

from autoprune.training import Reconstructor

SIZE = 16


class ToyBackbone(nn.Module):
    """Two convolutions with norms, and two feature maps as an FPN gives them."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d, width: int = 6) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.norm1 = norm(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, stride=2, bias=False)
        self.norm2 = norm(width)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        fine = self.norm1(self.conv1(images)).relu()
        return OrderedDict({"0": fine, "1": self.norm2(self.conv2(fine)).relu()})


class ToyDetector(nn.Module):
    """Has the shape of a torchvision detector: transform, backbone, losses in training, boxes in eval."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d, width: int = 6, dropout: float = 0.1) -> None:
        super().__init__()
        self.transform = GeneralizedRCNNTransform(SIZE, SIZE, [0.4, 0.5, 0.6], [0.2, 0.25, 0.3])
        self.backbone = ToyBackbone(norm, width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 5)

    def forward(self, images: list[Tensor], targets: list[dict[str, Any]] | None = None) -> Any:
        inputs, targets = self.transform(images, targets)
        maps = list(self.backbone(inputs.tensors).values())
        outputs = self.head(self.dropout(maps[0].mean((2, 3)) + maps[1].mean((2, 3))))
        if not self.training:
            return [{"boxes": row[None, :4]} for row in outputs]
        assert targets is not None
        boxes = torch.stack([target["boxes"][0] for target in targets]) / SIZE
        labels = torch.stack([target["labels"][0] for target in targets]).float()
        return {
            "box": (outputs[:, :4] - boxes).abs().mean(),
            "label": (outputs[:, 4] - labels).square().mean(),
        }


class ToySplit:
    """Random images, each with one box; records the calls of `batch`, which training does not use."""

    def __init__(self, count: int = 10, size: int = SIZE, seed: int = 0) -> None:
        random = np.random.default_rng(seed)
        self.bytes = torch.from_numpy(random.integers(0, 256, (count, 3, size, size), dtype=np.uint8))
        self.images = self.bytes / 255
        self.left = size / 8
        self.calls: list[tuple[list[int], list[bool] | None]] = []

    def __len__(self) -> int:
        return len(self.images)

    @property
    def fingerprint(self) -> str:
        return str(float(self.images.sum()))

    def batch(
        self, indices: Sequence[int], device: torch.device, flip: Sequence[bool] | None = None
    ) -> tuple[list[Tensor], list[dict[str, Any]]]:
        self.calls.append((list(indices), None if flip is None else list(flip)))
        flips = [False] * len(indices) if flip is None else flip
        images, targets = [], []
        for index, flipped in zip(indices, flips, strict=True):
            image, target = self.get(index)
            if flipped:
                x1, y1, x2, y2 = target["boxes"][0].tolist()
                size = image.shape[-1]
                target["boxes"] = torch.tensor([[size - x2, y1, size - x1, y2]])
                image = image.flip(-1)
            images.append((image / 255).to(device))
            targets.append({name: value.to(device) for name, value in target.items()})
        return images, targets

    def get(self, index: int) -> tuple[Tensor, dict[str, Any]]:
        size = self.images.shape[-1]
        boxes = torch.tensor([[self.left, 2.0, self.left + size / 2, size - 2.0]])
        return self.bytes[index], {"boxes": boxes, "labels": torch.tensor([index % 3 + 1])}


def make_retinanet(norm: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    body = resnet18(weights=None, norm_layer=norm)
    backbone = BackboneWithFPN(body, {"layer2": "0", "layer3": "1"}, [128, 256], 16)
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((1.0,),) * 3)
    return RetinaNet(backbone, num_classes=4, anchor_generator=anchors, min_size=64, max_size=64)


@pytest.fixture
def tiny_retinanet() -> Callable[[type[nn.Module]], nn.Module]:
    return make_retinanet


@pytest.fixture
def toy() -> ToyDetector:
    torch.manual_seed(0)
    return ToyDetector()


@pytest.fixture
def split() -> ToySplit:
    return ToySplit()


@pytest.fixture
def image_split() -> ToySplit:
    return ToySplit(count=6, size=64)


def reconstruct(pruned, dense, graph, keep, split, images, device, seed):
    """One pruned copy, reconstructed."""
    return Reconstructor(dense, graph, split, images, device, seed)(pruned, keep)
