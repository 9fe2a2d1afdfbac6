"""Vendors' detectors from their configurations, with random weights, at small input sizes.

Needs `transformers` with `timm`, `ultralytics`, or `libreyolo`: each only for its own detectors.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

QUERIES = 24
_STEPS = {"encoder_layers": 2, "decoder_layers": 2, "num_queries": QUERIES}
_RESNET = {
    "depths": [2, 2, 2, 2],
    "hidden_sizes": [64, 128, 256, 512],
    "layer_type": "basic",
    "embedding_size": 64,
}


class Raw(nn.Module):
    """A model of transformers, called with pixels alone; returns its logits and boxes, or what it has.

    Args:
        model: the model.
        given: further arguments of each call.
    """

    def __init__(self, model: nn.Module, given: dict[str, Any] | None = None) -> None:
        super().__init__()
        self.model, self.given = model, given or {}

    def forward(self, pixels: torch.Tensor) -> Any:
        """The model's tensors by name."""
        out = self.model(pixel_values=pixels, **self.given)
        names = [n for n in ("logits", "pred_boxes", "last_hidden_state", "feature_maps") if n in out]
        return {name: out[name] for name in names}


def _hf(kind: str, head: str, backbone: Any = None, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import transformers

        given = dict(options)
        if backbone is not None:
            name, settings = backbone
            given["backbone_config"] = transformers.AutoConfig.for_model(name, **settings)
        config = transformers.AutoConfig.for_model(kind, **given)
        return Raw(getattr(transformers, head)(config))

    return build


def _resnet(*stages: str, **more: Any) -> tuple[str, dict[str, Any]]:
    return "resnet", {**_RESNET, "out_features": list(stages), **more}


def _ultralytics(yaml: str, kind: str = "DetectionModel") -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        from ultralytics.nn import tasks

        return getattr(tasks, kind)(yaml, nc=5, verbose=False)  # type: ignore[no-any-return]

    return build


def _timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import timm

        return timm.create_model(name, **options)  # type: ignore[no-any-return]

    return build


def _libreyolo(module: str, head: str, **options: Any) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        import importlib

        return getattr(importlib.import_module(f"libreyolo.models.{module}.nn"), head)(**options)  # type: ignore[no-any-return]

    return build


_RT = {"num_denoising": 0, "decoder_layers": 3, "num_queries": QUERIES}
_RT_R18 = (
    "rt_detr_resnet",
    {
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
        "layer_type": "basic",
        "out_features": ["stage2", "stage3", "stage4"],
        "downsample_in_bottleneck": False,
    },
)
_RT_R50 = ("rt_detr_resnet", {"out_features": ["stage2", "stage3", "stage4"]})
_HGNET = ("hgnet_v2", {"out_features": ["stage2", "stage3", "stage4"]})
_VIT = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "intermediate_size": 768}
_SWIN = {
    "embed_dim": 48,
    "depths": [2, 2, 2, 2],
    "num_heads": [2, 4, 8, 16],
    "window_size": 4,
    "image_size": 128,
}


def _grounding_dino() -> nn.Module:
    import transformers

    config = transformers.GroundingDinoConfig(
        backbone_config=transformers.AutoConfig.for_model(
            "swin", **{**_SWIN, "out_features": ["stage2", "stage3", "stage4"]}
        ),
        text_config={
            "hidden_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 6,
            "intermediate_size": 768,
        },
        encoder_layers=2,
        decoder_layers=2,
        num_queries=QUERIES,
    )
    words = torch.tensor([[101, 1037, 4937, 1012, 1037, 6556, 2491, 1012, 102]])  # "a cat. a remote control."
    given = {"input_ids": words, "attention_mask": torch.ones_like(words)}
    return Raw(transformers.GroundingDinoForObjectDetection(config), given)


# ruff: noqa: E501 (a table)
# By name: how to build it, and the side of its square images.
ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "hf/rtdetr-r18": (_hf("rt_detr", "RTDetrForObjectDetection", _RT_R18,
                          encoder_in_channels=[128, 256, 512], hidden_expansion=0.5, **_RT), 128),
    "hf/rtdetr-r50": (_hf("rt_detr", "RTDetrForObjectDetection", _RT_R50, **_RT), 128),
    "hf/rtdetrv2-r18": (_hf("rt_detr_v2", "RTDetrV2ForObjectDetection", _RT_R18,
                            encoder_in_channels=[128, 256, 512], hidden_expansion=0.5, **_RT), 128),
    "hf/dfine": (_hf("d_fine", "DFineForObjectDetection", _HGNET,
                     encoder_in_channels=[512, 1024, 2048], **_RT), 128),
    "hf/deimv2": (_hf("deimv2", "Deimv2ForObjectDetection", _HGNET,
                      encoder_in_channels=[512, 1024, 2048], **_RT), 128),
    "hf/grounding-dino": (_grounding_dino, 128),
    "hf/detr": (_hf("detr", "DetrForObjectDetection", _resnet("stage4"), **_STEPS), 128),
    "hf/conditional": (_hf("conditional_detr", "ConditionalDetrForObjectDetection", _resnet("stage4"), **_STEPS), 128),
    "hf/deformable": (_hf("deformable_detr", "DeformableDetrForObjectDetection",
                          _resnet("stage2", "stage3", "stage4"), **_STEPS), 128),
    "hf/table": (_hf("table-transformer", "TableTransformerForObjectDetection", _resnet("stage4"), **_STEPS), 128),
    "hf/detr-swin": (_hf("detr", "DetrForObjectDetection", ("swin", {**_SWIN, "out_features": ["stage4"]}), **_STEPS), 128),
    "hf/detr-convnextv2": (_hf("detr", "DetrForObjectDetection", ("convnextv2", {
        "hidden_sizes": [40, 80, 160, 320], "depths": [2, 2, 4, 2], "out_features": ["stage4"]}), **_STEPS), 128),
    "hf/rfdetr": (_hf("rf_detr", "RfDetrForObjectDetection", ("rf_detr_dinov2", {
        **_VIT, "patch_size": 14, "image_size": 112, "num_windows": 2, "out_features": ["stage2", "stage4"]}),
        decoder_layers=2, num_queries=QUERIES), 112),
    "hf/lwdetr": (_hf("lw_detr", "LwDetrForObjectDetection", ("lw_detr_vit", {
        **_VIT, "image_size": 128, "pretrain_image_size": 128, "num_windows": 4, "window_block_indices": [0, 2],
        "out_features": ["stage2", "stage4"]}), decoder_layers=2, num_queries=QUERIES,
        projector_scale_factors=[1.0]), 128),
    "hf/yolos": (_hf("yolos", "YolosForObjectDetection", image_size=[64, 64], num_detection_tokens=QUERIES, **_VIT), 64),
    "hf/vit": (_hf("vit", "ViTForImageClassification", image_size=64, **_VIT), 64),
    "hf/swin": (_hf("swin", "SwinForImageClassification", **_SWIN), 128),
    "hf/convnextv2": (_hf("convnextv2", "ConvNextV2ForImageClassification",
                          hidden_sizes=[40, 80, 160, 320], depths=[2, 2, 4, 2]), 64),
    "timm/vit": (_timm("vit_tiny_patch16_224", img_size=64, depth=4), 64),
    "timm/swin": (_timm("swin_tiny_patch4_window7_224", img_size=128, window_size=4, embed_dim=48,
                        depths=(2, 2, 2, 2), num_heads=(2, 4, 8, 16)), 128),
    "ul/yolo11n": (_ultralytics("yolo11n.yaml"), 64),
    "ul/yolo12n": (_ultralytics("yolo12n.yaml"), 64),
    "ul/yolo26n": (_ultralytics("yolo26n.yaml"), 64),
    "ul/rtdetr-l": (_ultralytics("rtdetr-l.yaml", "RTDETRDetectionModel"), 128),
    "libre/dfine-n": (_libreyolo("dfine", "LibreDFINEModel", config="n", nb_classes=5, eval_spatial_size=(256, 256),
                                 train_from_scratch=True), 256),
    # LibreYOLO's RT-DETRv4 is this network too.
    "libre/dfine-s": (_libreyolo("dfine", "LibreDFINEModel", config="s", nb_classes=5, eval_spatial_size=(256, 256),
                                 train_from_scratch=True), 256),
    "libre/ec-s": (_libreyolo("ec", "LibreECModel", config="s", nb_classes=5, eval_spatial_size=(256, 256)), 256),
    "libre/yolox-n": (_libreyolo("yolox", "LibreYOLOXModel", config="n", nb_classes=5), 64),
    "libre/rtmdet-t": (_libreyolo("rtmdet", "LibreRTMDetModel", size="t", nc=5), 64),
}  # fmt: skip


def build(name: str, pixels: int | None = None) -> tuple[nn.Module, tuple[torch.Tensor]]:
    """A detector in eval mode, and its inputs: one square image, with a side of ``pixels`` if given."""
    torch.manual_seed(0)
    make, side = ZOO[name]
    side = pixels or side
    return make().eval(), (torch.rand(1, 3, side, side),)
