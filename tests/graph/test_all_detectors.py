"""Every detector of torchvision, unmodified, with both kinds of norm."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models import detection, list_models

from autoprune.graph import analyze, prune

IMAGE = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(7))
SORTED = ("", "rpn", "roi_heads")
TARGET = {
    "boxes": torch.tensor([[8.0, 8.0, 40.0, 40.0]]),
    "labels": torch.tensor([1]),
    "masks": torch.ones(1, 64, 64, dtype=torch.uint8),
    "keypoints": torch.full((1, 17, 3), 20.0),
}


def build(name: str) -> nn.Module:
    sizes = {} if "ssd" in name else {"min_size": 64, "max_size": 64}
    torch.manual_seed(0)
    model = getattr(detection, name)(weights=None, weights_backbone=None, num_classes=5, **sizes)
    if hasattr(model, "roi_heads"):
        # As many proposals and detections whatever the weights, or costs could not be compared.
        model.rpn._post_nms_top_n = {"training": 20, "testing": 12}
        model.roi_heads.score_thresh, model.roi_heads.detections_per_img = -1.0, 3
        model.roi_heads.box_predictor.bbox_pred.weight.data *= 1e-3
    return model


@pytest.mark.parametrize("norm", ["batch", "frozen"])
@pytest.mark.parametrize("name", list_models(detection))
def test_exact_in_results_and_cost(name, norm, randomise, freeze_norms, keep_sets, compare, counted):
    model = build(name)
    model = randomise(freeze_norms(model) if norm == "frozen" else model)
    graph = analyze(model, ([IMAGE],))
    frozen = [group for group in graph.groups.values() if not group.prunable]
    assert all(group.reason.startswith("has no consumer") for group in frozen)

    keep = keep_sets(graph, 1)
    double = copy.deepcopy(model).double()
    count, worst = compare(double, graph, ([IMAGE.double()],), keep, skip=SORTED)
    assert count >= 6
    assert worst <= 1e-12

    pruned = prune(model, graph, keep)
    widths = graph.vector({group: len(kept) for group, kept in keep.items()})
    assert (graph.cost.flops(widths), graph.cost.params(widths)) == counted(pruned, ([IMAGE],))

    if norm == "frozen":
        return
    pruned.train()
    loss = sum(pruned([IMAGE, IMAGE], [TARGET, TARGET]).values())
    assert torch.isfinite(loss)
    loss.backward()
    assert all(p.grad is not None for p in pruned.parameters() if p.requires_grad)


@pytest.mark.parametrize("name", ["maskrcnn_resnet50_fpn", "keypointrcnn_resnet50_fpn"])
def test_an_input_without_detections_shows_the_same_groups(name):
    model = build(name)
    seeing = analyze(model, ([IMAGE],))
    model.roi_heads.score_thresh = 2.0
    blind = analyze(model, ([IMAGE],))
    assert {n: (g.width, g.prunable) for n, g in blind.groups.items()} == {
        n: (g.width, g.prunable) for n, g in seeing.groups.items()
    }
    for group in seeing.groups:
        found = {(name, axis): index.tolist() for name, axis, index in blind.groups[group].members}
        assert found == {(name, axis): index.tolist() for name, axis, index in seeing.groups[group].members}
