"""Under bfloat16 autocast, boxes are decoded in float32 inside the block, and in bfloat16 outside of it."""

from typing import NamedTuple

import pytest
import torch
from torch import nn
from torchvision.models.detection import (
    fasterrcnn_mobilenet_v3_large_320_fpn,
    retinanet_resnet50_fpn,
    ssdlite320_mobilenet_v3_large,
)

from autoprune.modules.float_outputs import HEADS, float_outputs


def anchors_used(model, images):
    """The anchors that the box coder got, by their type, and what it decoded."""
    coder, used = (model.box_coder if hasattr(model, "box_coder") else model.rpn.box_coder), []
    name = "decode_single" if hasattr(model, "box_coder") else "decode"
    decode = getattr(coder, name)

    def spy(codes, boxes):
        used.append((codes.dtype, decode(codes, boxes)))
        return used[-1][1]

    setattr(coder, name, spy)
    try:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            model(images)
    finally:
        delattr(coder, name)
    return used


@pytest.mark.parametrize("build", [retinanet_resnet50_fpn, fasterrcnn_mobilenet_v3_large_320_fpn])
def test_boxes_are_decoded_from_float32(build):
    torch.manual_seed(0)
    size = {"min_size": 64, "max_size": 64}
    model = build(weights=None, weights_backbone=None, num_classes=3, **size).eval()
    if hasattr(model, "score_thresh"):
        model.score_thresh = 0.0
    images = [torch.rand(3, 64, 64)]
    before = anchors_used(model, images)
    assert before
    assert {dtype for dtype, _ in before} == {torch.bfloat16}
    with float_outputs(model):
        inside = anchors_used(model, images)
    assert {dtype for dtype, _ in inside} == {torch.float32}
    assert all(decoded.dtype == torch.float32 for _, decoded in inside)
    assert {dtype for dtype, _ in anchors_used(model, images)} == {torch.bfloat16}, "hooks are removed"


@pytest.mark.parametrize("build", [retinanet_resnet50_fpn, ssdlite320_mobilenet_v3_large])
def test_anchors_are_those_of_float32(build):
    torch.manual_seed(0)
    model = build(weights=None, weights_backbone=None, num_classes=3).eval()
    generator, made = model.anchor_generator, []
    generator.register_forward_hook(lambda module, args, output: made.extend(output))
    images = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        model(images)
        with torch.autocast("cpu", torch.bfloat16), float_outputs(model):
            model(images)
        model(images)
    before, inside, after = made
    assert torch.equal(before, inside)
    assert torch.equal(before, after), "the generator keeps what it rounds"


def test_bfloat16_moves_a_corner_and_float32_does_not():
    """What the conversion is for: torchvision gives its anchors the type of the predicted offsets."""
    from torchvision.models.detection._utils import BoxCoder

    coder, anchors = BoxCoder((1.0, 1.0, 1.0, 1.0)), torch.tensor([[701.0, 333.0, 765.0, 397.0]])
    exact = coder.decode_single(torch.zeros(1, 4), anchors)
    rough = coder.decode_single(torch.zeros(1, 4, dtype=torch.bfloat16), anchors)
    assert torch.equal(exact, anchors)
    assert (rough.float() - anchors).abs().max() >= 1


def test_without_autocast_nothing_changes():
    torch.manual_seed(0)
    size = {"min_size": 64, "max_size": 64}
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=3, **size).eval()
    assert set(HEADS) & {name for name, _ in model.named_modules()} == {"head"}
    images = [torch.rand(3, 64, 64)]
    with torch.no_grad():
        plain = model(images)
        with float_outputs(model):
            inside = model(images)
    assert all(torch.equal(plain[0][key], inside[0][key]) for key in plain[0])


class Boxes(NamedTuple):
    deltas: torch.Tensor
    levels: list[int]


class Named(nn.Module):
    """A detector of one's own, whose head returns a named tuple."""

    def __init__(self):
        super().__init__()
        self.head = nn.ModuleDict({"out": nn.Conv2d(3, 4, 1)})
        self.head.forward = lambda x: Boxes(self.head["out"](x), [x.shape[-1]])

    def forward(self, x):
        return self.head(x)


def test_what_a_head_returns_keeps_its_kind():
    model = Named().bfloat16()
    x = torch.rand(1, 3, 4, 4, dtype=torch.bfloat16)
    plain = model(x)
    with float_outputs(model):
        inside = model(x)
    assert isinstance(inside, Boxes)
    assert inside.levels == [4]
    assert inside.deltas.dtype == torch.float32
    assert torch.equal(inside.deltas, plain.deltas.float())
