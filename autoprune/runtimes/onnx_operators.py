"""Operators that torch's ONNX exporter lacks or gets wrong, for the time that a file is written."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.onnx import symbolic_helper, symbolic_opset9

OPSET = 17
_onnx: Any = torch.onnx  # without types
_helper: Any = symbolic_helper


@contextmanager
def more_operators() -> Iterator[None]:
    """The exporter knows `OPERATORS` within."""
    for name, write in OPERATORS.items():
        _onnx.register_custom_op_symbolic(name, write, OPSET)
    try:
        yield
    finally:
        for name in OPERATORS:
            _onnx.unregister_custom_op_symbolic(name, OPSET)


def _smoothed(mode: str) -> Callable[..., Any]:
    """Resizing with antialiasing, which ONNX has from opset 18: a product of two matrices for fixed sizes."""

    def write(graph: Any, image: Any, size: Any, align_corners: Any, *scales: Any) -> Any:
        old = _helper._get_tensor_sizes(image)
        new = _helper._get_tensor_sizes(graph.original_node.output())
        if old is None or new is None or None in (*old[-2:], *new[-2:]):
            raise ValueError(f"{mode} resizing with antialiasing of unknown sizes; raw heads in pt2 have it")
        aligned = bool(_helper._get_const(align_corners, "i", "align_corners"))
        rows, columns = (_weights(*sides, mode, aligned) for sides in zip(old[-2:], new[-2:], strict=True))
        first, second = (graph.op("Constant", value_t=each.contiguous()) for each in (rows, columns.T))
        return graph.op("MatMul", graph.op("MatMul", first, image), second)

    return write


def _weights(old: int, new: int, mode: str, align_corners: bool) -> Tensor:
    """What each of ``new`` positions takes of each of ``old``, [new, old]."""
    single = torch.eye(old)[None, None]
    return F.interpolate(single, (new, old), mode=mode, align_corners=align_corners, antialias=True)[0, 0]


def _linspace(graph: Any, start: Any, end: Any, steps: Any, dtype: Any, *options: Any) -> Any:
    """In its own type: the exporter leaves it in that of its ends, which are of 64 bits."""
    values = symbolic_opset9.linspace(graph, start, end, steps, dtype, *options)
    kind = _helper._get_const(dtype, "i", "dtype")
    if kind is None:
        return values
    return graph.op("Cast", values, to_i=_onnx.JitScalarType(kind).onnx_type())


def _sort(graph: Any, values: Any, *options: Any) -> Any:
    """Sorting with ``stable`` given, which the exporter takes for the tensor to write to.

    ONNX's TopK puts equal values in the order of their indices, as a stable sort does.
    """
    dim, descending = (_helper._get_const(each, "i", "sort") for each in options[-2:])
    return _helper._sort_helper(graph, values, dim, descending=descending)


def _argsort(graph: Any, values: Any, *options: Any) -> Any:
    """See `_sort`."""
    return _sort(graph, values, *options)[1]


OPERATORS: dict[str, Callable[..., Any]] = {
    "aten::_upsample_bicubic2d_aa": _smoothed("bicubic"),
    "aten::_upsample_bilinear2d_aa": _smoothed("bilinear"),
    "aten::argsort": _argsort,
    "aten::linspace": _linspace,
    "aten::sort": _sort,
}
"""By torch's names, from a node of a trace to nodes of ONNX."""
