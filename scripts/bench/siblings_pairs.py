"""The pairs of `siblings.py`: two detectors of one family, at an input size that a CPU can train at."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RTDETR_SIZE = 128  # pixels, of both sides
RTDETR_QUERIES = 40  # so many boxes, and noisy ones in training; the paper's 300 cost four times the step


@dataclass(frozen=True)
class Pair:
    """Two detectors of one family.

    Attributes:
        larger: name of the one that is pruned.
        smaller: name of the one that the family has at a lower cost.
        arguments: of both, with the input size.
        write: writes the files that the names speak of into a folder; in the names, ``{folder}`` is that.
    """

    larger: str
    smaller: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    write: Callable[[Path], None] | None = None

    def within(self, folder: Path) -> "Pair":
        """The pair with the files that it needs in ``folder``."""
        if self.write is None:
            return self
        self.write(folder)
        larger, smaller = (name.format(folder=folder) for name in (self.larger, self.smaller))
        return Pair(larger, smaller, self.arguments)


def write_rtdetr(folder: Path) -> None:
    """Writes the settings of RT-DETR-R34 and R18 without weights, as Transformers saves them.

    Layers and widths are those of the published ones (https://github.com/lyuwenyu/RT-DETR, in both of whose
    encoders the hidden expansion is 0.5), queries and input size are fewer, and BatchNorm is trained.
    """
    from transformers import RTDetrConfig, RTDetrImageProcessor, RTDetrResNetConfig

    for name, depths, decoder_layers in (("r34", [3, 4, 6, 3], 4), ("r18", [2, 2, 2, 2], 3)):
        backbone = RTDetrResNetConfig(
            layer_type="basic",
            depths=depths,
            hidden_sizes=[64, 128, 256, 512],
            out_features=["stage2", "stage3", "stage4"],
        )
        config = RTDetrConfig(
            backbone_config=backbone,
            use_pretrained_backbone=False,
            encoder_in_channels=[128, 256, 512],
            hidden_expansion=0.5,
            decoder_layers=decoder_layers,
            num_queries=RTDETR_QUERIES,
            num_denoising=RTDETR_QUERIES,
            freeze_backbone_batch_norms=False,
            architectures=["RTDetrForObjectDetection"],
        )
        config.save_pretrained(folder / f"rtdetr-{name}")
        size = {"height": RTDETR_SIZE, "width": RTDETR_SIZE}
        RTDetrImageProcessor(size=size).save_pretrained(folder / f"rtdetr-{name}")


PAIRS = {
    "yolo11": Pair("ultralytics:yolo11s.yaml", "ultralytics:yolo11n.yaml", {"imgsz": 224}),
    "retinanet": Pair(
        "retinanet_resnet34_fpn",
        "retinanet_resnet18_fpn",
        {
            "min_size": 96,
            "max_size": 128,
            "fpn_channels": 64,
            "returned_layers": [2, 3],
            "anchor_sizes": [16, 32, 64, 128],
        },
    ),
    "rtdetr": Pair(
        "transformers:{folder}/rtdetr-r34", "transformers:{folder}/rtdetr-r18", write=write_rtdetr
    ),
    "dfine": Pair("libreyolo:dfine-s", "libreyolo:dfine-n", {"imgsz": 256}),
}
