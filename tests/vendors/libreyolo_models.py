"""Checkpoints of LibreYOLO with detections that differ, and images; only where it is installed."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

pytest.importorskip("libreyolo")
from autoprune.vendors.libreyolo import FAMILIES

KINDS = {
    "yolox": ("n", 96),
    "yolo9": ("t", 96),
    "rtmdet": ("t", 96),
    "rtdetr": ("r18", 128),
    "dfine": ("n", 256),
    "deim": ("n", 256),
}
"""The smallest size of each kind, and the smallest input that its queries allow."""
NAMES = {0: "RBC", 1: "WBC", 2: "Platelets"}
BCCD = Path(__file__).parents[3] / "shared" / "data" / "bccd" / "images"
SIZES = ((48, 64), (97, 41), (307, 461), (171, 411), (77, 90), (96, 96))
"""Heights and widths of which LibreYOLO's letterboxes round in different ways."""


def pictures(count: int) -> list[Image.Image]:
    """Images of cells where there are some, else of smooth noise, of many sizes."""
    random = np.random.default_rng(0)
    files = sorted(BCCD.rglob("*.jpg"))[:count]
    images = []
    for n in range(count):
        if files:
            image = Image.open(files[n % len(files)]).convert("RGB")
        else:
            image = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        height, width = SIZES[n % len(SIZES)]
        images.append(
            image if n % 3 == 0 and files else image.resize((width, height), Image.Resampling.BICUBIC)
        )
    return images


def as_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255


def is_prediction(name: str) -> bool:
    """Whether a tensor belongs to a layer that predicts classes."""
    parts = ("cls_preds", "obj_preds", "rtm_cls", "score_head")
    return any(part in name for part in parts) or (name.startswith("head.cv3") and name.split(".")[3] == "2")


@torch.no_grad()
def wrapper(family: str, classes: int = 3) -> Any:
    """LibreYOLO's own object with a network as after a training, in evaluation mode."""
    size, side = KINDS[family]
    torch.manual_seed(0)
    made = FAMILIES[family](model_path=None, size=size, nb_classes=classes, device="cpu", _scratch_init=True)
    made.names = {n: NAMES.get(n, f"class {n}") for n in range(classes)}
    network = made.model
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5)
            module.bias.uniform_(-0.5, 0.5)
            module.reset_running_stats()
            module.momentum = None  # the statistics of the next batch
    batch = torch.cat([made._preprocess(image, input_size=side)[0] for image in pictures(4)])
    network.train()(batch)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 0.03
    for name, parameter in network.named_parameters():
        if is_prediction(name):
            scale = 1.0 if family == "yolox" else 0.3
            spread = scale * parameter[0].numel() ** -0.5 if parameter.dim() > 1 else 0.1
            parameter.normal_(0 if parameter.dim() > 1 else -2, spread)
    network.eval()
    return made
