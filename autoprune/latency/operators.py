"""The convolutions and linear layers of a network, and one pass of each of them at any width in a runtime."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from autoprune.latency.machine import LatencySetup
from autoprune.runtimes.extras import need
from autoprune.runtimes.onnx_operators import OPSET
from autoprune.runtimes.sessions import open_session

Pass = Callable[[], object]


@dataclass(frozen=True)
class Operator:
    """What a convolution's time depends on, besides its runtime; a linear layer is one of size 1 x rows.

    Attributes:
        inputs: input channels.
        outputs: output channels.
        kernel: height and width.
        stride: of rows and columns.
        padding: of rows and columns.
        dilation: of rows and columns.
        groups: of a grouped convolution; 1 for a plain one.
        bias: whether it adds one.
        size: images, height and width of the input.
    """

    inputs: int
    outputs: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    groups: int
    bias: bool
    size: tuple[int, int, int]

    def narrowed(self, inputs: int, outputs: int) -> "Operator":
        """The same with other numbers of channels; a grouped one keeps its channels per group."""
        if self.groups == 1:
            return replace(self, inputs=inputs, outputs=outputs)
        groups = max(1, round(self.groups * inputs / self.inputs))
        each_in, each_out = self.inputs // self.groups, self.outputs // self.groups
        return replace(self, inputs=groups * each_in, outputs=groups * each_out, groups=groups)


@dataclass(frozen=True)
class Call:
    """One use of an operator in a network.

    Attributes:
        weight: name of its weight in the state dict, whose axes are outputs and inputs.
        operator: at its dense width.
    """

    weight: str
    operator: Operator


def find_calls(model: nn.Module, images: Sequence[Tensor]) -> list[Call]:
    """Every call of a convolution or linear layer in one pass, in order; a shared head counts each time.

    Args:
        model: in eval mode, on the images' device.
        images: each [3, height, width].
    """
    calls: list[Call] = []
    names = {module: name for name, module in model.named_modules()}

    def note(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        shape = inputs[0].shape
        name = f"{names[module]}.weight"
        if isinstance(module, nn.Conv2d):
            operator = Operator(
                module.in_channels,
                module.out_channels,
                _pair(module.kernel_size),
                _pair(module.stride),
                (0, 0),
                _pair(module.dilation),
                module.groups,
                module.bias is not None,
                (int(shape[0]), int(shape[2]), int(shape[3])),
            )
            rows, columns = map(int, output.shape[-2:])
            padding = _padding(operator, module.padding, (rows, columns))
            calls.append(Call(name, replace(operator, padding=padding)))
        elif isinstance(module, nn.Linear) and inputs[0].numel():
            rows = inputs[0].numel() // module.in_features
            one = (1, 1)
            operator = Operator(
                module.in_features,
                module.out_features,
                one,
                one,
                (0, 0),
                one,
                1,
                module.bias is not None,
                (1, 1, int(rows)),
            )
            calls.append(Call(name, operator))

    hooks = [
        module.register_forward_hook(note)
        for module in model.modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    try:
        with torch.inference_mode():
            model(list(images))
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _padding(operator: Operator, declared: Any, output: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns that a convolution adds at either end of its input, by the size of its output.

    A module may say ``same`` in place of numbers, or pad by its own code, as those of timm do that follow
    TensorFlow: then it is the least that gives the output.

    Args:
        operator: the convolution, without its padding.
        declared: what the module says.
        output: height and width of what it returned.
    """
    spans = [
        dilation * (side - 1) + 1 for dilation, side in zip(operator.dilation, operator.kernel, strict=True)
    ]
    axes = list(zip(operator.size[1:], spans, operator.stride, output, strict=True))
    if isinstance(declared, tuple):
        given = _pair(declared)
        made = [
            (side + 2 * pad - span) // step + 1
            for (side, span, step, _), pad in zip(axes, given, strict=True)
        ]
        if made == list(output):
            return given
    rows, columns = (max(0, -(-((out - 1) * step + span - side) // 2)) for side, span, step, out in axes)
    return rows, columns


def one_pass(operator: Operator, setup: LatencySetup, folder: Path) -> Pass:
    """A function that runs the operator once, on fixed random numbers.

    Args:
        operator: what to run.
        setup: runtime, device and threads.
        folder: for a file, which is overwritten by the next call.

    Raises:
        ConfigError: the runtime is not installed, or has no such device.
    """
    count, height, width = operator.size
    shape = (count, operator.inputs, height, width)
    if setup.runtime != "torch":
        path = folder / "operator.onnx"
        _write(operator, path)
        session = open_session(path, setup.runtime, str(setup.device), setup.threads)
        image = np.random.default_rng(0).random(shape, np.float32)
        return lambda: session(image)
    convolution = nn.Conv2d(
        operator.inputs,
        operator.outputs,
        operator.kernel,
        operator.stride,
        operator.padding,
        operator.dilation,
        operator.groups,
        operator.bias,
    )
    device = setup.device
    convolution = convolution.to(device).eval().requires_grad_(False)
    pixels = torch.rand(shape, device=device)

    def run() -> None:
        with torch.inference_mode():
            convolution(pixels)
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    return run


def _write(operator: Operator, path: Path) -> None:
    """An ONNX file of one convolution."""
    onnx = need("onnx")
    helper, kind = onnx.helper, onnx.TensorProto.FLOAT
    count, height, width = operator.size
    random = np.random.default_rng(0)
    weight = random.standard_normal(
        (operator.outputs, operator.inputs // operator.groups, *operator.kernel)
    ).astype(np.float32)
    weights = [onnx.numpy_helper.from_array(weight, "weight")]
    if operator.bias:
        weights.append(onnx.numpy_helper.from_array(np.zeros(operator.outputs, np.float32), "bias"))
    node = helper.make_node(
        "Conv",
        ["image", *(tensor.name for tensor in weights)],
        ["out"],
        kernel_shape=operator.kernel,
        strides=operator.stride,
        pads=[*operator.padding, *operator.padding],
        dilations=operator.dilation,
        group=operator.groups,
    )
    graph = helper.make_graph(
        [node],
        "operator",
        [helper.make_tensor_value_info("image", kind, [count, operator.inputs, height, width])],
        [helper.make_tensor_value_info("out", kind, None)],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)])
    model.ir_version = 8
    path.write_bytes(model.SerializeToString())


def _pair(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, tuple) else (value, value)
    return int(first), int(second)
