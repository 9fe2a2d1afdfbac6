"""Tiny detectors of Transformers, one a family, whose weights tell images and classes apart."""

from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

from autoprune.detectors import detector_inputs, load_dense
from autoprune.fields import ModelSpec
from autoprune.graph import ChannelGraph, analyze
from autoprune.policy import Policy, hash_weights
from autoprune.vendors.transformers_families import FAMILIES, quiet

CLASSES = 3
NAMES = {0: "RBC", 1: "WBC", 2: "Platelets"}
RESNET = {
    "model_type": "resnet",
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "layer_type": "basic",
    "out_features": ["stage4"],
}
RT_RESNET = {
    **RESNET,
    "hidden_sizes": [8, 16, 24, 32],
    "model_type": "rt_detr_resnet",
    "out_features": ["stage3", "stage4"],
}
DETR = {
    "backbone_config": RESNET,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "num_queries": 12,
}
RT_DETR = {
    "backbone_config": RT_RESNET,
    "encoder_in_channels": [24, 32],
    "feat_strides": [16, 32],
    "encode_proj_layers": [1],
    "num_feature_levels": 2,
    "encoder_hidden_dim": 16,
    "d_model": 16,
    "decoder_in_channels": [16, 16],
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "decoder_layers": 2,
    "num_queries": 12,
    "num_denoising": 8,
}
HGNET = {
    "model_type": "hgnet_v2",
    "stem_channels": [3, 8, 8],
    "stage_in_channels": [8, 16, 16, 24],
    "stage_mid_channels": [8, 8, 8, 8],
    "stage_out_channels": [16, 16, 24, 32],
    "stage_num_blocks": [1, 1, 1, 1],
    "stage_downsample": [False, True, True, True],
    "stage_light_block": [False, False, True, True],
    "stage_kernel_size": [3, 3, 5, 5],
    "stage_numb_of_layers": [1, 1, 1, 1],
    "embedding_size": 8,
    "hidden_sizes": [16, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "out_features": ["stage3", "stage4"],
}
DINO = {
    "model_type": "rf_detr_dinov2",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 64,
    "patch_size": 8,
    "num_windows": 2,
    "out_features": ["stage1", "stage2"],
}
CONFIGS: dict[str, dict[str, Any]] = {
    "detr": DETR,
    "conditional_detr": DETR,
    "deformable_detr": {
        **DETR,
        "backbone_config": {**RESNET, "out_features": ["stage2", "stage3", "stage4"]},
        "d_model": 32,  # its input projections have 32 groups
        "num_feature_levels": 4,
        "with_box_refine": True,
        "two_stage": True,
        "two_stage_num_proposals": 12,
    },
    "rt_detr": RT_DETR,
    "rt_detr_v2": {**RT_DETR, "decoder_n_levels": 2},
    "d_fine": {**RT_DETR, "backbone_config": HGNET, "eval_idx": -1},
    "rf_detr": {
        "backbone_config": DINO,
        "d_model": 16,
        "decoder_ffn_dim": 24,
        "decoder_layers": 2,
        "decoder_self_attention_heads": 2,
        "decoder_cross_attention_heads": 2,
        "decoder_n_points": 2,
        "num_queries": 12,
        "group_detr": 2,
        "hidden_expansion": 0.5,
        "c2f_num_blocks": 1,
    },
    "yolos": {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "image_size": [64, 64],
        "patch_size": 16,
        "num_detection_tokens": 12,
    },
}
SIZES = {family: {"shortest_edge": 64, "longest_edge": 96} for family in FAMILIES} | {
    family: {"height": 64, "width": 64} for family in ("rt_detr", "rt_detr_v2", "d_fine", "rf_detr")
}
SIZES["deformable_detr"] = {
    "shortest_edge": 128,
    "longest_edge": 160,
}  # its smallest map must have two pixels


def config_of(family: str) -> dict[str, Any]:
    """A complete ``config.json`` of a tiny detector."""
    return {"model_type": family, "id2label": NAMES, **CONFIGS[family]}


def vendor_model(family: str, seed: int = 0) -> Any:
    """The vendor's model with weights of a fixed seed, larger than fresh ones, so that its scores differ."""
    torch.manual_seed(seed)
    kind = getattr(transformers, FAMILIES[family].model)
    with quiet():
        model = kind(kind.config_class.from_dict(config_of(family))).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "class" in name and weight.dim() > 1:
                weight.normal_(0, 0.5)
            elif any(word in name for word in ("query", "token", "embedding")):
                weight.normal_(0, 1)
            elif weight.dim() > 1:
                weight.add_(torch.randn_like(weight), alpha=1 / weight[0].numel() ** 0.5)
            elif name.endswith("bias"):
                weight.add_(torch.randn_like(weight), alpha=0.1)
        for module in model.modules():
            if isinstance(getattr(module, "running_var", None), torch.Tensor):
                module.running_var.uniform_(0.5, 1.5)
                module.running_mean.normal_(0, 0.2)
    return model


def processor_of(family: str) -> Any:
    """The vendor's image processor at a small size."""
    with quiet():
        return getattr(transformers, FAMILIES[family].processor)(size=SIZES[family])


def write_folder(folder: Path, family: str) -> nn.Module:
    """Writes what a user has, by the vendor's own functions, and returns the model."""
    model = vendor_model(family)
    with quiet():
        model.save_pretrained(folder)
        processor_of(family).save_pretrained(folder)
    return model


def halved(folder: Path, side: int) -> tuple[nn.Module, ModelSpec, ChannelGraph, Policy]:
    """The detector of a folder, its graph at an input size, and a policy of half of each group's channels."""
    dense, spec = load_dense(f"transformers:{folder}", weights=folder)
    graph = analyze(dense, detector_inputs((side, side)))
    keep = {
        name: tuple(sorted(group.units[::2].ravel().tolist()))
        for name, group in graph.prunable.items()
        if len(group.units) > 1
    }
    widths = {name: graph.groups[name].width for name in keep}
    labels = {index + 1: name for index, name in NAMES.items()}
    policy = Policy(spec, hash_weights(dense.state_dict()), "l2", (side, side), widths, keep, labels=labels)
    return dense, spec, graph, policy
