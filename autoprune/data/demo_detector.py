"""The demo's detector and data: constants that the demo and `scripts/train_demo_detector.py` share."""

from pathlib import Path
from typing import Any

from autoprune.config import ModelSpec

IMAGE_SIZE = 128
"""Height and width of the generated images, in pixels."""
DATA_SEED = 0
"""Seed of the generated set. Image i of a split is the same however many images the split has."""
TRAIN_IMAGES = 6000
"""Training images of the shipped weights."""
VAL_IMAGES = 256
"""Validation images that the shipped weights are measured on."""
CLASSES = 5

MODEL = ModelSpec(
    name="retinanet_resnet18_fpn",
    arguments={
        "min_size": IMAGE_SIZE,
        "max_size": IMAGE_SIZE,
        "fpn_channels": 64,
        "returned_layers": [2, 3],
        "anchor_sizes": [16, 32, 64, 128],
    },
    num_classes=CLASSES + 1,
    norm="batch",
)
"""The dense detector: torchvision's RetinaNet on ResNet-18 up to layer3, 3.3 M parameters."""

SIBLING = MODEL.model_copy(update={"arguments": {**MODEL.arguments, "base_width": 36, "fpn_channels": 36}})
"""The smaller sibling: the same RetinaNet with 36/64 of the channels of every layer, at 34% of the GFLOPs."""

WEIGHTS = Path(__file__).parent / "demo_retinanet.safetensors"
"""The shipped dense weights, float16 on disk."""
SIBLING_WEIGHTS = WEIGHTS.with_name("demo_retinanet_small.safetensors")
"""The shipped weights of the smaller sibling, trained as long on the same images, float16 on disk."""

TRAINING: dict[str, Any] = {
    "steps": 6000,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "warmup": 0.05,
    "ema_decay": 0.998,
    "clip_norm": 10.0,
    "bf16": True,
}
"""`training.TrainSettings` of the shipped weights, the sibling's too."""
