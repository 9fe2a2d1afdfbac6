"""Models of Ultralytics whose boxes differ from each other, and images; only where it is installed."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

pytest.importorskip("ultralytics")

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd" / "images"
"""Images of blood cells, in checkouts that have them."""
GENERATED = ((48, 64), (63, 50), (97, 41), (40, 40))
"""Heights and widths of what stands in for them."""


def pictures(count: int) -> list[np.ndarray]:
    """Images [h, w, 3] of uint8, RGB: real ones where there are, else smooth noise."""
    if files := sorted(BCCD.rglob("*.jpg"))[:count]:
        return [np.array(Image.open(file).convert("RGB")) for file in files]
    random = np.random.default_rng(0)
    images = []
    for n in range(count):
        height, width = GENERATED[n % len(GENERATED)]
        small = Image.fromarray(random.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        images.append(np.array(small.resize((width * 4, height * 4), Image.Resampling.BICUBIC)))
    return images


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def make_lively(detector: nn.Module, seed: int = 0) -> nn.Module:
    """Gives fresh weights norms of the images' own statistics and scores that tell boxes apart, in place."""
    generator = torch.Generator().manual_seed(seed)
    vendor = detector.unwrap()
    norms = [module for module in vendor.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the statistics of the next batch
            norm.reset_running_stats()
            norm.weight.uniform_(0.5, 1.5, generator=generator)
            norm.bias.uniform_(-0.5, 0.5, generator=generator)
        vendor.train()
        vendor(torch.rand(4, 3, 128, 128, generator=generator))
        head = vendor.model[-1]
        for name, layer in head.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.bias is None or "input_proj" in name:
                continue
            outputs, spread = len(layer.bias), layer.weight[0].numel() ** -0.5
            if outputs == vendor.nc:  # scores from 0.01 to 0.5
                layer.weight.normal_(0, spread, generator=generator)
                layer.bias.fill_(-3)
            elif outputs == 4 * getattr(head, "reg_max", 0):  # boxes of a few cells
                layer.weight.normal_(0, spread / 2, generator=generator)
                falling = (
                    torch.arange(float(head.reg_max)).mul(-0.4) if head.reg_max > 1 else torch.tensor([1.5])
                )
                layer.bias.copy_(falling.repeat(4))
            elif outputs == 4:
                layer.weight.normal_(0, spread / 4, generator=generator)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return detector.eval()
