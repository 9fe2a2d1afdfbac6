"""Every detector of torchvision with both kinds of norm: results, files, training and cost."""

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.models import detection, list_models
from torchvision.models.detection import faster_rcnn, fcos, keypoint_rcnn, mask_rcnn, retinanet, ssd
from torchvision.models.detection.faster_rcnn import FastRCNNConvFCHead, FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.resnet import Bottleneck, ResNet
from torchvision.models.vgg import make_layers
from torchvision.ops import FrozenBatchNorm2d

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.export import load, save_detector
from autoprune.graph import ChannelGraph, analyze, count, mask, prune
from autoprune.graph.emptiable import largest_set
from autoprune.policy import Policy, hash_weights

SIZE, OTHER_SIZE = (64, 64), (96, 64)
# Results of these are sorted by score: a tie may fall either way.
SORTED = ("", "rpn", "roi_heads")
# Layers that decide which boxes are passed on.
DECIDING = ("bbox_pred", "cls_logits", "cls_score")
TARGET = {
    "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
    "labels": torch.tensor([1]),
    "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    "keypoints": torch.full((1, 17, 3), 20.0),
}


def images(size: tuple[int, int], dtype: torch.dtype = torch.float32) -> tuple[list[torch.Tensor]]:
    return ([torch.rand(3, *size, generator=torch.Generator().manual_seed(7)).to(dtype)],)


def specification(name: str, norm: str) -> ModelSpec:
    """A small detector, whose numbers of proposals and detections do not depend on the weights."""
    arguments: dict[str, Any] = {"score_thresh": 0.0, "nms_thresh": 1.0, "detections_per_img": 3}
    if "rcnn" in name:
        arguments = {f"box_{key}": value for key, value in arguments.items()}
        arguments |= {"rpn_post_nms_top_n_train": 20, "rpn_post_nms_top_n_test": 6, "rpn_nms_thresh": 1.0}
    if "ssd" not in name:
        arguments |= {"min_size": 64, "max_size": 96}
    return ModelSpec(name=name, arguments=arguments, num_classes=5, norm=norm)


# As torchvision makes them. The others differ in backbone and heads: a ResNet-50 has one block a stage there,
# a VGG one convolution a stage, and the widest layers of the heads are narrow.
WHOLE = (("fasterrcnn_resnet50_fpn", "batch"), ("retinanet_resnet50_fpn", "frozen"))
NARROW = 64


def one_block_a_stage(norm_layer: Any = nn.BatchNorm2d, **_: Any) -> nn.Module:
    """Stands for `torchvision.models.resnet50` in a detector's builder."""
    return ResNet(Bottleneck, [1, 1, 1, 1], norm_layer=norm_layer)


def one_convolution_a_stage(**_: Any) -> SimpleNamespace:
    """Stands for `torchvision.models.vgg16`; SSD's own layers read 512 channels of the last two stages."""
    return SimpleNamespace(features=make_layers([16, "M", 32, "M", 64, "M", 512, "M", 512, "M"]))


SMALLER = {
    "resnet50": one_block_a_stage,
    "vgg16": one_convolution_a_stage,
    "TwoMLPHead": lambda inputs, _: TwoMLPHead(inputs, NARROW),
    "FastRCNNConvFCHead": lambda inputs, convolutions, _, **norm: FastRCNNConvFCHead(
        inputs, convolutions, [NARROW], **norm
    ),
    "FastRCNNPredictor": lambda _, classes: FastRCNNPredictor(NARROW, classes),
    "KeypointRCNNHeads": lambda inputs, layers: KeypointRCNNHeads(inputs, [NARROW for _ in layers]),
    "KeypointRCNNPredictor": lambda _, points: KeypointRCNNPredictor(NARROW, points),
}


@pytest.fixture(autouse=True)
def _smaller(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    params = request.node.callspec.params
    if (params["name"], params.get("norm")) not in WHOLE:
        for module in (faster_rcnn, fcos, keypoint_rcnn, mask_rcnn, retinanet, ssd):
            for name in SMALLER.keys() & vars(module).keys():
                monkeypatch.setattr(module, name, SMALLER[name])


WITHOUT_NORMS = "ssd300_vgg16"  # the same network for both kinds
# One detector of each kind of backbone and head with frozen norms; those of the others are only compared.
FROZEN_TOO = (
    "fasterrcnn_mobilenet_v3_large_320_fpn",
    "fasterrcnn_resnet50_fpn_v2",
    "retinanet_resnet50_fpn",
    "ssdlite320_mobilenet_v3_large",
)
CASES = [(name, "batch") for name in list_models(detection)] + [(name, "frozen") for name in FROZEN_TOO]


@pytest.mark.parametrize(("name", "norm"), CASES)
def test_a_detector_is_pruned_exactly(
    name, norm, randomize, keep_sets, outputs, largest_distance, counted, costed, tmp_path
):
    spec = specification(name, norm)
    model = randomize(build(spec))
    kinds = FrozenBatchNorm2d if norm == "frozen" else (nn.BatchNorm2d, FrozenBatchNorm2d)
    assert any(isinstance(m, kinds) for m in model.modules()) == (name != WITHOUT_NORMS)
    # Two-stage detectors cost what their boxes cost: for the counts all boxes score alike.
    deciding = {n: p.detach().clone() for n, p in model.named_parameters() if any(d in n for d in DECIDING)}
    for parameter in deciding:
        model.get_parameter(parameter).data.zero_()
    with torch.no_grad():
        model(*images(SIZE))
    graph = analyze(model, images(SIZE))
    assert count(model, images(SIZE)) == (graph.gflops(), graph.mparams())
    assert all(g.reason.startswith("has no consumer") for g in graph.groups.values() if not g.prunable)
    random, single = keep_sets(graph, 1), keep_sets(graph, 2, 0)
    emptied = {**random, **dict.fromkeys(largest_set(graph, graph.emptiable), ())}
    assert len(graph.emptiable) >= (0 if name == WITHOUT_NORMS else 4)
    assert costed(graph, emptied)[:2] == counted(prune(model, graph, emptied), images(SIZE))[:2]
    pruned = prune(model, graph, random)
    # The kind of a norm changes no count, so a second size is counted for one kind. SSD300 resizes any
    # image to 300x300, as SSDlite does to 320x320.
    for size in (SIZE, OTHER_SIZE) if norm == "batch" and name != WITHOUT_NORMS else (SIZE,):
        sized = graph if size == SIZE else analyze(model, images(size))
        assert costed(sized, {}) == counted(model, images(size)), f"dense cost at {size}"
        assert costed(sized, random) == counted(pruned, images(size)), f"pruned cost at {size}"

    model.load_state_dict(deciding, strict=False)
    dense = outputs(model, images(SIZE))
    whole = prune(model, graph, {group: range(g.width) for group, g in graph.groups.items()})
    assert all(map(torch.equal, *map(flat, (outputs(whole, images(SIZE)), dense)))), "all kept"

    policy = Policy(spec, hash_weights(model.state_dict()), "random", SIZE, widths(graph), random)
    save_detector(tmp_path, prune(model, graph, random), policy)
    doubles = copy.deepcopy(model).double()
    both, double = ((torch.float32, 1e-5), (torch.float64, 1e-12)), ((torch.float64, 1e-12),)
    cases = [
        ("random", random, load(tmp_path), both),
        ("one unit", single, prune(model, graph, single), double),
    ]
    if emptied != random:
        cases.append(("emptied", emptied, None, both))
    for case, keep, candidate, bounds in cases:
        masked = mask(model, graph, keep)
        for dtype, bound in bounds:
            inputs = images(SIZE, dtype)
            # A norm is folded into a constant in the precision of the weights.
            tried = candidate or prune(doubles if dtype is torch.float64 else model, graph, keep)
            compared, worst = largest_distance(
                outputs(tried.to(dtype), inputs), outputs(masked.to(dtype), inputs), graph, keep, SORTED
            )
            assert compared >= 6, (case, dtype)
            assert worst <= bound, (case, dtype)

    pruned.train()
    loss = sum(pruned([*images(SIZE)[0]] * 2, [TARGET, TARGET]).values())
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None for p in pruned.parameters() if p.requires_grad)


def widths(graph: ChannelGraph) -> dict[str, int]:
    return {name: group.width for name, group in graph.prunable.items()}


def flat(outputs: dict[str, list[torch.Tensor]]) -> list[torch.Tensor]:
    return [tensor for tensors in outputs.values() for tensor in tensors]


# Two of version 2 have norms in their heads: `FROZEN_TOO` has one whose heads' norms are not frozen.
@pytest.mark.parametrize(
    "name", sorted({*list_models(detection)} - {*FROZEN_TOO, WITHOUT_NORMS} | {"fasterrcnn_resnet50_fpn_v2"})
)
def test_detectors_all_of_whose_norms_are_frozen_are_pruned_exactly(
    name, randomize, freeze_norms, keep_sets, compare
):
    model = randomize(freeze_norms(build(specification(name, "frozen"))).double())
    assert any(isinstance(m, FrozenBatchNorm2d) for m in model.modules())
    graph = analyze(model, images(SIZE, torch.float64))
    count, worst = compare(model, graph, images(SIZE, torch.float64), keep_sets(graph, 1), skip=SORTED)
    assert count >= 6
    assert worst <= 1e-12


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"])
def test_an_input_without_detections_shows_the_same_groups(name):
    model = build(specification(name, "batch"))
    seeing = analyze(model, images(SIZE))
    model.roi_heads.score_thresh = 2.0
    blind = analyze(model, images(SIZE))
    assert {n: (g.width, g.prunable) for n, g in blind.groups.items()} == {
        n: (g.width, g.prunable) for n, g in seeing.groups.items()
    }
    for group in seeing.groups:
        members = {(m.tensor, m.axis): m.channels.tolist() for m in blind.groups[group].members}
        assert members == {(m.tensor, m.axis): m.channels.tolist() for m in seeing.groups[group].members}
