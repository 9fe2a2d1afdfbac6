"""Tests of torchvision's heads on any backbone: anchors and heads as torchvision's own builders make them."""

import pytest
import torch
from torchvision.models.detection import fcos_resnet50_fpn, retinanet_resnet50_fpn, retinanet_resnet50_fpn_v2

from autoprune.vendors.one_stage import one_stage_detector

STRIDES = [8, 16, 32, 64, 128]
BUILDERS = {
    "retinanet": retinanet_resnet50_fpn,
    "retinanet_v2": retinanet_resnet50_fpn_v2,
    "fcos": fcos_resnet50_fpn,
}


@pytest.mark.parametrize("family", BUILDERS)
def test_the_heads_and_anchors_are_those_of_torchvision(family):
    theirs = BUILDERS[family](weights=None, weights_backbone=None, num_classes=5)
    ours = one_stage_detector(family, theirs.backbone, 5, STRIDES)
    assert type(ours) is type(theirs)
    assert ours.anchor_generator.sizes == theirs.anchor_generator.sizes
    assert ours.anchor_generator.aspect_ratios == theirs.anchor_generator.aspect_ratios
    assert (ours.transform.min_size, ours.transform.max_size) == ((800,), 1333)
    ours.load_state_dict(theirs.state_dict())
    images = [torch.rand(3, 64, 96, generator=torch.Generator().manual_seed(0))]
    for model in (ours, theirs):
        model.transform.min_size, model.score_thresh = (64,), -1.0
        model.eval()
    with torch.no_grad():
        got, expected = ours(images)[0], theirs(images)[0]
    assert len(expected["boxes"]) > 10
    assert all(torch.equal(got[name], expected[name]) for name in expected)


def test_anchor_sizes_are_one_per_level():
    backbone = retinanet_resnet50_fpn(weights=None, weights_backbone=None).backbone
    sized = one_stage_detector("retinanet", backbone, 3, STRIDES, anchor_sizes=[10, 20, (30, 40, 50), 60, 70])
    assert sized.anchor_generator.sizes == (
        (10, 12, 15), (20, 25, 31), (30, 40, 50), (60, 75, 95), (70, 88, 111),
    )  # fmt: skip
    with pytest.raises(ValueError, match="needs 5 entries, one per level, not 2"):
        one_stage_detector("retinanet", backbone, 3, STRIDES, anchor_sizes=[10, 20])
