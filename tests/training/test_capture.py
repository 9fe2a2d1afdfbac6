from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from autoprune.config import ModelSpec
from autoprune.detectors import build, detector_inputs
from autoprune.detectors.parts import find_parts
from autoprune.graph import analyze
from autoprune.modules.tensor_tree import feature_maps
from autoprune.training.capture import Tap, hooked

SMALL = {"min_size": 64, "max_size": 64}


def build_small(name: str, **arguments: Any) -> nn.Module:
    torch.manual_seed(0)
    return build(ModelSpec(name=name, arguments=arguments, num_classes=3)).eval()


def test_a_tap_takes_each_forward_pass_once() -> None:
    model = build_small("retinanet_resnet18_fpn", fpn_channels=16, returned_layers=[2, 3], **SMALL)
    layer = "head.regression_head.bbox_reg"
    parts = find_parts(model, analyze(model, detector_inputs((64, 64))))
    inputs: list[Tensor] = []
    images = [torch.rand(3, 64, 64)]
    model.get_submodule(layer).register_forward_hook(lambda _module, args, _out: inputs.append(args[0]))
    with torch.no_grad(), Tap(model, parts, True, [layer]) as tap:
        model(images)
        captured = tap.take()
        with pytest.raises(RuntimeError, match="no forward pass"):
            tap.take()
    batch = model.transform(images)[0].tensors
    assert torch.equal(captured.batch, batch)
    expected = feature_maps(model.backbone(batch))
    for ours, theirs in zip(captured.features, expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    (logits,) = captured.logits
    torch.testing.assert_close(logits, model.head(expected)["cls_logits"])
    assert len(inputs) == 2 * len(expected)  # of the two passes, one call per level
    for ours, theirs in zip(captured.inputs[layer], inputs[: len(expected)], strict=True):
        assert torch.equal(ours, theirs)
    assert not model.backbone._forward_hooks  # they are removed
    assert not model.head.regression_head.bbox_reg._forward_pre_hooks


def test_a_tap_of_nothing_has_nothing_to_give() -> None:
    model = SimpleNamespace()
    with Tap(model) as tap, pytest.raises(RuntimeError, match="no forward pass"):  # type: ignore[arg-type]
        tap.take()


def test_hooks_tell_each_call_with_the_layers_name_and_go_with_the_block() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))
    layers, before, after = {"a": model[0], "b": model[2]}, [], []
    given = torch.rand(3, 2)
    with (
        hooked(layers, lambda name, layer, read: before.append((name, layer, read))),
        hooked(layers, lambda name, layer, read, output: after.append((name, output)), after=True),
    ):
        result = model(given)
        with pytest.raises(RuntimeError):
            model(torch.rand(3, 5))
    model(given)
    assert [name for name, *_ in before] == ["a", "b", "a"]
    assert [name for name, _ in after] == ["a", "b"]
    assert before[0][1] is model[0]
    assert before[0][2] is given
    assert after[1][1] is result
