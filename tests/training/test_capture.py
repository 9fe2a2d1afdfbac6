from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.config import ModelSpec
from autoprune.detectors import build, detector_inputs
from autoprune.errors import ModelError
from autoprune.graph import analyze
from autoprune.training.capture import Tap, class_logits, feature_maps, has_head, prediction_inputs

SMALL = {"min_size": 64, "max_size": 64}


def build_small(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelSpec(name=name, arguments=arguments, num_classes=3)).eval()


@pytest.mark.parametrize(
    ("name", "arguments", "layers"),
    [
        (
            "retinanet_resnet18_fpn",
            SMALL,
            {"classification_head.cls_logits": 256, "regression_head.bbox_reg": 256},
        ),
        (
            "fcos_resnet50_fpn",
            SMALL,
            {
                "classification_head.cls_logits": 256,
                "regression_head.bbox_reg": 256,
                "regression_head.bbox_ctrness": 256,
            },
        ),
        ("ssdlite320_mobilenet_v3_large", {}, {}),  # it reads the backbone's outputs
    ],
)
def test_what_prediction_layers_read(name: str, arguments: dict[str, Any], layers: dict[str, int]) -> None:
    model = build_small(name, **arguments)
    size = 64 if arguments else 320
    graph = analyze(model, detector_inputs((size, size)))
    read = prediction_inputs(graph)
    if name.startswith("ssd"):  # depthwise layers stand between; none of what they read is an output
        assert not {group for group, _ in read.values()} & {group for group, _ in graph.features["backbone"]}
    else:
        assert {layer: len(index) for layer, (_, index) in read.items()} == layers
    assert has_head(model)


def test_a_tap_takes_each_forward_pass_once() -> None:
    model = build_small("retinanet_resnet18_fpn", fpn_channels=16, returned_layers=[2, 3], **SMALL)
    layer = "regression_head.bbox_reg"
    inputs: list[Tensor] = []
    images = [torch.rand(3, 64, 64)]
    model.head.get_submodule(layer).register_forward_hook(lambda _module, args, _out: inputs.append(args[0]))
    with torch.no_grad(), Tap(model, features=True, logits=True, layers=[layer]) as tap:
        model(images)
        captured = tap.take()
        with pytest.raises(RuntimeError, match="no forward pass"):
            tap.take()
    batch = model.transform(images)[0].tensors
    assert torch.equal(captured.images, batch)
    expected = feature_maps(model.backbone(batch))
    for ours, theirs in zip(captured.features, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert captured.logits is not None
    torch.testing.assert_close(captured.logits, model.head(expected)["cls_logits"])
    assert len(inputs) == 2 * len(expected)  # of the two passes, one call per level
    for ours, theirs in zip(captured.inputs[layer], inputs[: len(expected)], strict=True):
        assert torch.equal(ours, theirs)
    assert not model.backbone._forward_hooks  # they are removed
    assert not model.head.regression_head.bbox_reg._forward_pre_hooks


def test_a_tap_of_nothing_has_nothing_to_give() -> None:
    model = SimpleNamespace()
    with Tap(model) as tap, pytest.raises(RuntimeError, match="no forward pass"):  # type: ignore[arg-type]
        tap.take()


def test_a_head_without_class_logits_is_refused() -> None:
    with pytest.raises(ModelError, match="no `cls_logits` to distill"):
        class_logits([torch.ones(1)])
    assert class_logits({"cls_logits": torch.ones(1)}) == 1
