"""Models of Ultralytics whose boxes differ from each other, and images; only where it is installed."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

pytest.importorskip("ultralytics")

BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd" / "images"
"""Images of blood cells, in checkouts that have them."""
CALM = 0.3
"""By what the queries and keys of random attention are scaled."""
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
        small = Image.fromarray(random.integers(80, 180, (6, 6, 3), dtype=np.uint8))
        images.append(np.array(small.resize((width * 4, height * 4), Image.Resampling.BICUBIC)))
    return images


def as_tensor(picture: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(picture).permute(2, 0, 1).float() / 255


def make_lively(detector: nn.Module, seed: int = 0) -> nn.Module:
    """Gives fresh weights norms with the statistics of images and scores that tell boxes apart, in place."""
    generator = torch.Generator().manual_seed(seed)
    vendor, head = detector.unwrap(), detector.head
    norms = [module for module in vendor.modules() if isinstance(module, nn.BatchNorm2d)]
    momenta = [norm.momentum for norm in norms]
    batch = torch.cat(
        [F.interpolate(as_tensor(image)[None], (96, 128), mode="bilinear") for image in pictures(4)]
    )
    with torch.no_grad():
        for norm in norms:
            norm.momentum = None  # the statistics of the next batch
            norm.reset_running_stats()
            norm.weight.uniform_(0.8, 1.2, generator=generator)
            norm.bias.uniform_(-0.2, 0.2, generator=generator)
        for name, module in vendor.named_modules():
            if name.endswith("qkv.bn"):  # sharp attention would make much of round-off
                module.weight.mul_(CALM)
        vendor.train()(batch)
        handles = []
        for name, layer in head.named_modules():
            if not isinstance(layer, nn.Conv2d | nn.Linear) or layer.bias is None or "input_proj" in name:
                continue
            if len(layer.bias) == vendor.nc:
                layer.bias.fill_(-3)  # scores around 0.05
                spread = 0.5
            elif len(layer.bias) == 4 * getattr(head, "reg_max", 1):
                bins = len(layer.bias) // 4
                layer.bias.copy_((-0.4 * torch.arange(bins) if bins > 1 else torch.tensor([1.5])).repeat(4))
                spread = 0.3
            else:
                continue
            layer.weight.normal_(generator=generator)
            handles.append(layer.register_forward_hook(partial(_spread, spread)))
        vendor.eval()(batch)
    for handle in handles:
        handle.remove()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return detector.eval()


def _spread(wanted: float, layer: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    """Gives the outputs of a layer, but for its bias, this standard deviation."""
    shape = (1, -1, 1, 1) if output.dim() == 4 else (-1,)
    layer.weight.mul_(wanted / (output - layer.bias.view(shape)).std())
