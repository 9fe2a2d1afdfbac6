"""The operators of a network are all of it that multiplies, and run alone as they do in it."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.latency.machine import LatencySetup
from autoprune.latency.operators import Operator, find_calls, one_pass


def multiply_adds(operator):
    count, height, width = operator.size
    rows, columns = (
        (side + 2 * operator.padding[i] - operator.dilation[i] * (operator.kernel[i] - 1) - 1)
        // operator.stride[i]
        + 1
        for i, side in enumerate((height, width))
    )
    each = operator.kernel[0] * operator.kernel[1] * operator.inputs // operator.groups
    return count * rows * columns * operator.outputs * each


@pytest.mark.parametrize(
    "name",
    ["retinanet_resnet18_fpn", "ssdlite320_mobilenet_v3_large", "fasterrcnn_mobilenet_v3_large_320_fpn"],
)
def test_calls_add_up_to_the_multiply_adds_of_the_network(name):
    arguments = {} if name.startswith("ssd") else {"min_size": 96, "max_size": 96}
    model = build(ModelSpec(name=name, arguments=arguments, num_classes=3)).eval()
    image = torch.rand(3, 96, 96, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([image])
    calls = find_calls(model, [image])
    assert sum(multiply_adds(call.operator) for call in calls) == counter.get_total_flops() // 2
    state = model.state_dict()
    for call in calls:
        assert state[call.weight].shape[:2] == (
            call.operator.outputs,
            call.operator.inputs // call.operator.groups,
        )
    assert not any(module._forward_hooks for module in model.modules())


class SameConv2d(nn.Conv2d):
    """Pads by its own code, one more row at the end than at the start, as TensorFlow does."""

    def forward(self, image):
        sides = [max(0, (-(-n // 2) - 1) * 2 + 5 - n) for n in image.shape[-2:]]
        rows, columns = ((side // 2, side - side // 2) for side in sides)
        return super().forward(nn.functional.pad(image, [*columns, *rows]))


class OfItsOwnPadding(nn.Module):
    """Its layers say no numbers of padding, or none that are true."""

    def __init__(self):
        super().__init__()
        self.same = nn.Conv2d(3, 8, 5, padding="same", dilation=2)
        self.valid = nn.Conv2d(8, 8, 3, padding="valid")
        self.own = nn.ModuleList([SameConv2d(8, 8, 5, 2, groups=8) for _ in range(5)])

    def forward(self, images):
        shown = self.valid(self.same(images[0][None]))
        for layer in self.own:  # the last ones see fewer rows than their kernels have
            shown = layer(shown)
        return shown


@pytest.mark.parametrize("size", [(40, 33), (41, 64)])
def test_an_operator_pads_as_its_layer_does_whatever_that_says(size):
    model = OfItsOwnPadding().eval()
    image = torch.rand(3, *size, generator=torch.Generator().manual_seed(0))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model([image])
    calls = find_calls(model, [image])
    assert sum(multiply_adds(call.operator) for call in calls) == counter.get_total_flops() // 2
    for call in calls:
        one_pass(call.operator, LatencySetup("torch", torch.device("cpu"), 1, size), None)()


PLAIN = Operator(16, 24, (3, 3), (2, 1), (1, 0), (1, 1), 1, True, (2, 9, 11))
DEPTHWISE = Operator(16, 32, (3, 3), (1, 1), (1, 1), (1, 1), 16, False, (1, 8, 8))


@pytest.mark.parametrize("operator", [PLAIN, DEPTHWISE, PLAIN.narrowed(8, 5), DEPTHWISE.narrowed(4, 8)])
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_operator_alone_has_the_shape_of_the_convolution(operator, runtime, tmp_path):
    pytest.importorskip("onnx", reason="the extra `onnx` is not installed")
    pytest.importorskip(runtime, reason=f"{runtime} is not installed")
    layer = nn.Conv2d(
        operator.inputs,
        operator.outputs,
        operator.kernel,
        operator.stride,
        operator.padding,
        groups=operator.groups,
        bias=operator.bias,
    )
    count, height, width = operator.size
    expected = layer(torch.zeros(count, operator.inputs, height, width)).shape
    setup = LatencySetup(runtime, torch.device("cpu"), 1, (64, 64))
    (output,) = one_pass(operator, setup, tmp_path)()
    assert output.shape == tuple(expected)
    assert np.isfinite(output).all()


def test_a_grouped_operator_narrows_by_whole_groups():
    assert DEPTHWISE.narrowed(4, 8) == Operator(4, 8, (3, 3), (1, 1), (1, 1), (1, 1), 4, False, (1, 8, 8))
    assert PLAIN.narrowed(8, 24).groups == 1
