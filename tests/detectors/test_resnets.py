"""Autoprune's own detectors against torchvision's on ResNet-50, and against hand counts."""

import pytest
import torch
from torch import nn
from torchvision.models import detection, resnet

from autoprune import detectors
from autoprune.config import ModelSpec
from autoprune.detectors.resnets import OWN
from autoprune.errors import ModelError

from .conftest import SMALL, features, one_line


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fcos_resnet18_fpn", "retinanet_resnet18_fpn_v2"])
def test_own_detectors_are_torchvisions_on_a_smaller_backbone(name):
    """Same keys outside the backbone's body as the ResNet-50 detector, same anchors, same outputs' form."""
    reference = getattr(detection, name.replace("18", "50"))(
        weights=None, weights_backbone=None, num_classes=5
    )
    mine = detectors.build(ModelSpec(name=name, num_classes=5))
    outside = [
        {key: tensor.shape for key, tensor in model.state_dict().items() if ".body." not in key}
        for model in (mine, reference)
    ]
    narrow = ("backbone.fpn.inner_blocks", "backbone.fpn.extra_blocks.p6.weight")  # read the body's channels
    assert outside[0].keys() == outside[1].keys()
    assert all(shape == outside[1][key] for key, shape in outside[0].items() if not key.startswith(narrow))
    assert mine.anchor_generator.sizes == reference.anchor_generator.sizes
    assert mine.anchor_generator.aspect_ratios == reference.anchor_generator.aspect_ratios
    assert getattr(mine.head.regression_head, "_loss_type", None) == getattr(
        reference.head.regression_head, "_loss_type", None
    )
    assert (mine.score_thresh, mine.nms_thresh) == (reference.score_thresh, reference.nms_thresh)


@pytest.mark.parametrize(("layers", "stride"), [([2, 3, 4], 8), ([2, 3], 8), ([1, 2], 4), ([3, 4], 16)])
def test_default_anchors_follow_the_levels_strides(layers, stride):
    arguments = SMALL | {"returned_layers": layers}
    for name, scale in (("retinanet_resnet18_fpn", 4), ("fcos_resnet18_fpn", 1)):
        model = detectors.build(ModelSpec(name=name, arguments=arguments, num_classes=2))
        levels = features(model)
        assert [64 // level.shape[-1] for level in levels] == [
            min(stride * 2**k, 64) for k in range(len(layers) + 2)
        ]
        assert [sizes[0] for sizes in model.anchor_generator.sizes] == [
            scale * stride * 2**k for k in range(len(levels))
        ]


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fcos_resnet18_fpn", "retinanet_resnet18_fpn_v2"])
def test_small_detectors_train_and_detect(name):
    arguments = SMALL | {"fpn_channels": 64}
    model = detectors.build(ModelSpec(name=name, arguments=arguments, num_classes=4)).train()
    image = torch.rand(3, 64, 64)
    boxes = torch.tensor([[5.0, 6.0, 40.0, 50.0]])
    losses = model([image, image], [{"boxes": boxes, "labels": torch.tensor([1])}] * 2)
    sum(losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters()), "everything is trainable"
    detections = model.eval()([image])[0]
    assert detections["boxes"].shape[1] == 4
    assert set(detections["labels"].tolist()) <= {1, 2, 3}


def test_anchor_sizes_can_be_given():
    arguments = SMALL | {"anchor_sizes": [8, 16, [30, 40, 50], 64]}
    model = detectors.build(ModelSpec(name="retinanet_resnet18_fpn", arguments=arguments, num_classes=2))
    assert model.anchor_generator.sizes == ((8, 10, 12), (16, 20, 25), (30, 40, 50), (64, 80, 101))


# base_width


def body_shapes(base_width: int, blocks: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Weights of a ResNet of basic blocks, counted by hand (He et al., 2016, table 1)."""
    shapes = {"conv1.weight": (base_width, 3, 7, 7), "bn1.weight": (base_width,)}
    inputs = base_width
    for stage, count in enumerate(blocks):
        outputs = base_width * (1, 2, 4, 8)[stage]
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            shapes[f"{name}.conv1.weight"] = (outputs, inputs, 3, 3)
            shapes[f"{name}.conv2.weight"] = (outputs, outputs, 3, 3)
            shapes |= {f"{name}.bn{norm}.weight": (outputs,) for norm in (1, 2)}
            if block == 0 and stage > 0:
                shapes[f"{name}.downsample.0.weight"] = (outputs, inputs, 1, 1)
                shapes[f"{name}.downsample.1.weight"] = (outputs,)
            inputs = outputs
    return shapes


@pytest.mark.parametrize(
    ("name", "blocks"), [("retinanet_resnet18_fpn", (2, 2, 2, 2)), ("fcos_resnet34_fpn", (3, 4, 6, 3))]
)
@pytest.mark.parametrize("base_width", [36, 7])
def test_base_width_scales_every_layer_of_the_body(name, blocks, base_width):
    arguments = {"base_width": base_width, "fpn_channels": 32}
    model = detectors.build(ModelSpec(name=name, arguments=arguments, num_classes=2))
    body = model.backbone.body.state_dict()
    assert {
        key: tuple(tensor.shape) for key, tensor in body.items() if key.endswith("weight")
    } == body_shapes(base_width, blocks)
    statistics = [tensor for key, tensor in body.items() if key.endswith(("running_mean", "running_var"))]
    norms = [shape for key, shape in body_shapes(base_width, blocks).items() if len(shape) == 1]
    assert sorted(tuple(tensor.shape) for tensor in statistics) == sorted(2 * norms)
    inner = [block[0].weight.shape for block in model.backbone.fpn.inner_blocks]
    assert inner == [(32, base_width * factor, 1, 1) for factor in (2, 4, 8)]


def test_base_width_keeps_strides_and_the_spread_of_fresh_weights():
    """As torchvision's: Kaiming by fan-out, norms of 1 and 0."""
    arguments = SMALL | {"base_width": 48}
    model = detectors.build(ModelSpec(name="retinanet_resnet18_fpn", arguments=arguments, num_classes=2))
    reference = resnet.resnet18(weights=None)
    for name, layer in model.backbone.body.named_modules():
        original = reference.get_submodule(name)
        if isinstance(layer, nn.Conv2d):
            for attribute in ("kernel_size", "stride", "padding", "dilation", "groups", "bias"):
                assert getattr(layer, attribute) == getattr(original, attribute), name
            fan_out = layer.out_channels * layer.kernel_size[0] ** 2
            assert layer.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
        elif isinstance(layer, nn.BatchNorm2d):
            assert (layer.eps, layer.momentum) == (original.eps, original.momentum)
            assert torch.equal(layer.weight, torch.ones(layer.num_features))
            assert torch.equal(layer.bias, torch.zeros(layer.num_features))


@pytest.mark.parametrize("depth", [18, 34])
def test_a_base_width_of_64_is_torchvisions_own(depth):
    build = OWN[f"retinanet_resnet{depth}_fpn"]
    torch.manual_seed(0)
    body = build(num_classes=2, base_width=64).backbone.body.state_dict()
    torch.manual_seed(0)
    reference = getattr(resnet, f"resnet{depth}")(weights=None).state_dict()
    assert body.keys() == {key for key in reference if not key.startswith("fc.")}
    assert all(torch.equal(tensor, reference[key]) for key, tensor in body.items())


@pytest.mark.parametrize("name", ["retinanet_resnet18_fpn", "fcos_resnet18_fpn", "retinanet_resnet18_fpn_v2"])
def test_a_narrow_detector_trains_and_detects(name):
    arguments = SMALL | {"fpn_channels": 64, "base_width": 12}
    model = detectors.build(ModelSpec(name=name, arguments=arguments, num_classes=4)).train()
    target = {"boxes": torch.tensor([[5.0, 6.0, 40.0, 50.0]]), "labels": torch.tensor([1])}
    losses = model([torch.rand(3, 64, 64)] * 2, [target] * 2)
    sum(losses.values()).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    assert model.eval()([torch.rand(3, 64, 64)])[0]["boxes"].shape[1] == 4


@pytest.mark.parametrize("base_width", [0, -8])
def test_a_base_width_below_one_is_refused_in_one_line(base_width):
    spec = ModelSpec(name="fcos_resnet18_fpn", arguments={"base_width": base_width}, num_classes=2)
    with pytest.raises(ModelError) as error:
        detectors.build(spec)
    assert f"base_width must be at least 1, not {base_width}" in one_line(error)
