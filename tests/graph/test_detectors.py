"""One-stage detectors, unmodified: pruned equals masked, and the cost model equals torch's counter."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import detection, resnet18
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops.feature_pyramid_network import LastLevelP6P7

from autoprune.graph import analyze, prune

IMAGES = ([torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(7))],)


def build(name: str) -> nn.Module:
    size = {"min_size": 64, "max_size": 64}
    extra = LastLevelP6P7(256, 256)
    body = _resnet_fpn_extractor(resnet18(), 5, returned_layers=[2, 3, 4], extra_blocks=extra)
    if name == "fcos_resnet18":
        return detection.FCOS(body, 5, **size)
    anchors = AnchorGenerator(tuple((8 * 2**k, 11 * 2**k) for k in range(5)), ((0.5, 1.0, 2.0),) * 5)
    return detection.RetinaNet(body, 5, anchor_generator=anchors, **size)


# `test_all_detectors` has RetinaNet with frozen norms, and FCOS with norms that are not.
@pytest.fixture(scope="module", params=["retinanet_resnet18/batch", "fcos_resnet18/frozen"])
def case(request, randomize, freeze_norms):
    name, norm = request.param.split("/")
    torch.manual_seed(0)
    model = build(name)
    model = randomize(freeze_norms(model) if norm == "frozen" else model)
    return model, analyze(model, IMAGES)


def test_only_the_predictions_are_frozen(case):
    _, graph = case
    frozen = {name for name, group in graph.groups.items() if not group.prunable}
    assert frozen
    assert all("logits" in n or "bbox_reg" in n or "ctrness" in n for n in frozen)
    assert all("no consumer" in graph.groups[n].reason for n in frozen)


@pytest.mark.parametrize("fraction", [None, 0.5, 0], ids=["random", "half", "one-unit"])
def test_pruned_equals_masked(case, fraction, keep_sets, compare):
    model, graph = case
    count, worst = compare(model, graph, IMAGES, keep_sets(graph, 1, fraction), skip=("",))
    assert count >= 6
    assert worst <= 1e-5


def test_pruned_equals_masked_in_double_precision(case, keep_sets, compare):
    model, graph = copy.deepcopy(case[0]).double(), case[1]
    count, worst = compare(model, graph, ([IMAGES[0][0].double()],), keep_sets(graph, 2), skip=("",))
    assert count >= 6
    assert worst <= 1e-12


def test_cost_is_exact_at_any_widths(case, keep_sets, counted, costed):
    model, graph = case
    dense = counted(model, IMAGES)
    assert (graph.gflops() * 1e9, graph.mparams() * 1e6) == pytest.approx(dense[:2], abs=0.5)
    for seed, fraction in [(3, None), (4, 0.3), (5, 0)]:
        keep = keep_sets(graph, seed, fraction)
        expected = counted(prune(model, graph, keep), IMAGES)
        assert costed(graph, keep)[:2] == expected[:2]


def test_a_branch_can_go_alone(case, compare, counted, costed):
    model, graph = copy.deepcopy(case[0]).double(), case[1]
    assert list(graph.emptiable) == [
        f"backbone.body.layer{n}.{k}.conv1" for n in (1, 2, 3, 4) for k in (0, 1)
    ]
    for name in graph.emptiable[::4]:  # of the first stage and of a deeper one
        count, worst = compare(model, graph, ([IMAGES[0][0].double()],), {name: []}, skip=("",))
        assert count >= 6
        assert worst <= 1e-12
        assert costed(graph, {name: []})[:2] == counted(prune(case[0], graph, {name: []}), IMAGES)[:2]


def test_detectors_without_whole_blocks_train(case, keep_sets):
    model, graph = case
    pruned = prune(model, graph, {**keep_sets(graph, 6, 0.5), **dict.fromkeys(graph.emptiable, ())}).train()
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}]
    loss = sum(pruned([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], targets * 2).values())
    loss.backward()
    assert all(p.grad is not None for p in pruned.parameters() if p.requires_grad)


def test_pruned_detectors_still_detect_and_train(case, keep_sets):
    model, graph = case
    pruned = prune(model, graph, keep_sets(graph, 6, 0.5))
    assert set(pruned(*IMAGES)[0]) == {"boxes", "scores", "labels"}
    targets = [{"boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]), "labels": torch.tensor([1])}]
    pruned.train()
    loss = sum(pruned([torch.rand(3, 64, 64), torch.rand(3, 64, 64)], targets * 2).values())
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None for p in pruned.parameters() if p.requires_grad)
