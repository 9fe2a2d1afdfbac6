"""Models other than detectors, small or built small: classifiers, transformers, segmentation, video, flow."""

from functools import partial

import pytest
import torch
from torch import nn
from torchvision import models
from torchvision.models import optical_flow, segmentation, video
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.video.mvit import MSBlockConfig

from autoprune.graph import analyze, prune
from autoprune.graph.emptiable import largest_set

SMALL = {"weights": None, "num_classes": 5}


def swin(**kwargs):
    return models.SwinTransformer(
        [2, 2], embed_dim=8, depths=[2, 2], num_heads=[2, 4], window_size=[2, 2], num_classes=5, **kwargs
    )


def convnext():
    return models.ConvNeXt([CNBlockConfig(8, 12, 2), CNBlockConfig(12, None, 1)], num_classes=5)


def maxvit():
    return models.MaxVit((32, 32), 8, 2, [8, 16], [1, 1], 4, 0.0, num_classes=5)


def mvit():
    setting = [
        MSBlockConfig(1, 8, 8, [3, 3, 3], [3, 3, 3], [1, 1, 1], [1, 2, 2]),
        MSBlockConfig(2, 8, 16, [3, 3, 3], [3, 3, 3], [1, 2, 2], [1, 2, 2]),
    ]
    return video.MViT((16, 16), 4, setting, True, False, True, False, num_classes=5)


CASES = {
    "convnext": (convnext, [(3, 32, 32)]),
    "densenet": (partial(models.DenseNet, 4, (2, 2), 8, num_classes=5), [(3, 32, 32)]),
    "efficientnet_b0": (partial(models.efficientnet_b0, **SMALL), [(3, 32, 32)]),
    "lraspp": (
        partial(segmentation.lraspp_mobilenet_v3_large, weights_backbone=None, **SMALL),
        [(3, 32, 32)],
    ),
    "maxvit": (maxvit, [(3, 32, 32)]),
    "mobilenet_v3_small": (partial(models.mobilenet_v3_small, **SMALL), [(3, 32, 32)]),
    "mvit": (mvit, [(3, 4, 16, 16)]),
    "r3d_18": (partial(video.r3d_18, **SMALL), [(3, 4, 16, 16)]),
    "raft_small": (partial(optical_flow.raft_small, weights=None), [(3, 128, 128)] * 2),
    "regnet_x_400mf": (partial(models.regnet_x_400mf, **SMALL), [(3, 32, 32)]),
    "shufflenet": (partial(models.shufflenet_v2_x0_5, **SMALL), [(3, 32, 32)]),
    "squeezenet": (partial(models.squeezenet1_1, **SMALL), [(3, 32, 32)]),
    "swin": (swin, [(3, 16, 16)]),
    "swin_v2": (
        partial(swin, block=SwinTransformerBlockV2, downsample_layer=PatchMergingV2),
        [(3, 16, 16)],
    ),
    "vit": (partial(models.VisionTransformer, 16, 8, 2, 2, 12, 20, num_classes=5), [(3, 16, 16)]),
}


def randomize_constants(model, generator):
    """Layer scales, class tokens and heads that start as one number would hide what feeds them."""
    for tensor in model.parameters():
        if tensor.dim() > 1 and tensor.numel() > 1 and bool((tensor == tensor.flatten()[0]).all()):
            tensor.data.copy_(torch.randn(tensor.shape, generator=generator))


@pytest.fixture(autouse=True)
def _products_in_the_open(monkeypatch):
    """The fused layer of torch's attention modules hides its products from FlopCounterMode."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    yield
    torch.backends.mha.set_fastpath_enabled(fast)


# RAFT's norms without parameters hold a number that nothing but this warning reads.
@pytest.mark.filterwarnings("ignore:input's size at dim=1 does not match num_features")
@pytest.mark.parametrize("name", CASES)
def test_exact_in_results_and_cost(name, randomize, keep_sets, compare, counted, costed):
    build, shapes = CASES[name]
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model: nn.Module = randomize(build())
    randomize_constants(model, generator)
    inputs = tuple(torch.rand(1, *shape, generator=generator) for shape in shapes)
    inputs = (*inputs, 1) if name.startswith("raft") else inputs  # one update of the flow
    graph = analyze(model, inputs)
    assert graph.prunable
    keep = keep_sets(graph, 1)
    assert costed(graph, keep) == counted(prune(model, graph, keep), inputs)
    if name.startswith("raft"):  # makes its coordinates in single precision
        count, worst = compare(model, graph, inputs, keep)
        assert worst <= 1e-5
    else:
        count, worst = compare(model.double(), graph, tuple(x.double() for x in inputs), keep)
        assert worst <= 1e-12
    assert count >= 1

    # whole blocks, beside other channels
    emptied = {**keep, **dict.fromkeys(largest_set(graph, graph.emptiable), ())}
    pruned = prune(model, graph, emptied)
    assert costed(graph, emptied)[:2] == counted(pruned, inputs_of(model, inputs))[:2]
    if not name.startswith("raft"):
        count, worst = compare(model, graph, inputs_of(model, inputs), emptied, depth=1)
        assert count >= 1
        assert worst <= 1e-12


def inputs_of(model, inputs):
    """The inputs in the precision of the model."""
    kind = next(model.parameters()).dtype
    return tuple(x.to(kind) if isinstance(x, torch.Tensor) else x for x in inputs)
