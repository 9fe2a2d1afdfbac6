"""Rules of elementwise ops with broadcasting, and of reductions.

They also track where removed channels hold zeros: summing over them is exact only there, and dividing by
them never is.
"""

# ruff: noqa: SIM905 (names of ops read best as words)
from collections.abc import Sequence
from typing import Any

import torch

from autoprune.ops.labels import Args, Axis, TraceConstraints

# The result is zero where every operand is; where any is; where the first is; nowhere.
ZERO_IF_ALL = set("add sub rsub maximum minimum lerp copy where addcmul hypot".split())
ZERO_IF_ANY = set("mul logical_and bitwise_and".split())
ZERO_KEEPING = set(
    "div relu leaky_relu silu gelu mish hardswish elu celu selu tanh atan asin sinh erf sign abs neg sqrt "
    "square trunc floor ceil round threshold clamp clamp_min clamp_max hardtanh hardshrink softshrink pow "
    "zero _prelu_kernel prelu native_dropout dropout nan_to_num expm1 log1p sin tan fill masked_fill".split()
)
NONZERO = (
    "sigmoid hardsigmoid exp exp2 log log2 log10 cos rsqrt reciprocal softplus log_sigmoid_forward "
    "floor_divide remainder fmod eq ne gt ge lt le isnan isinf isfinite logical_not logical_or logical_xor "
    "bitwise_not bitwise_or bernoulli atan2 erfinv logit"
).split()
SUMS = (
    "sum mean amax amin prod var std max min argmax argmin any all logsumexp linalg_vector_norm norm".split()
)

_DIVIDES = {"log": 0, "log2": 0, "log10": 0, "rsqrt": 0, "reciprocal": 0, "div": 1, "fmod": 1, "remainder": 1,
            "floor_divide": 1, "logit": 0}  # fmt: skip


def elementwise(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Elementwise ops with broadcasting: aligned axes hold the same channels."""
    out = out[0] if isinstance(out, tuple) else out
    operands = [a for a in args if isinstance(a, torch.Tensor)]
    axes: list[Axis] = [None] * out.dim()
    aligned = [_align(constraints, operand, out.dim()) for operand in operands]
    for d in range(out.dim()):
        labels = [operand_axes[d] for operand_axes, varies in aligned if varies[d]]
        if any(label is not None for label in labels):
            axis = labels[0]
            for label in labels[1:]:
                axis = constraints.unify(axis, label, op)
            if axis is not None and any(_stretched(operand, d - out.dim()) for operand in operands):
                constraints.guess(axis)  # `expand` may have got the length as a literal
            axes[d] = axis

    divisor = _DIVIDES.get(op)
    if divisor is not None and divisor < len(args) and isinstance(args[divisor], torch.Tensor):
        source = constraints.labels(args[divisor])
        if source and source.zero[0]:
            for axis in source.axes:
                constraints.freeze(axis, f"is divided by in {op}")

    zero = _zero(constraints, op, args, operands, axes)
    if out is args[0]:
        source = constraints.labels(out)
        if source:
            source.zero[0] = source.zero[0] and zero
    else:
        constraints.put(out, axes, zero)


def _align(
    constraints: TraceConstraints, operand: torch.Tensor, dims: int
) -> tuple[Sequence[Axis], Sequence[bool]]:
    """An operand's labels on the axes of the result, and on which of these it has more than one value."""
    missing = dims - operand.dim()
    axes = constraints.axes(operand)
    varies = [n != 1 for n in operand.shape]
    if 0 in operand.stride():
        for d, (axis, stride) in enumerate(zip(axes, operand.stride(), strict=True)):
            varies[d] = varies[d] and (axis is not None or stride != 0)
    return (*[None] * missing, *axes), (*[False] * missing, *varies)


def _stretched(operand: torch.Tensor, d: int) -> bool:
    """Whether `expand` has repeated one value along axis ``d``, counted from the last one, -1."""
    return -d <= operand.dim() and operand.shape[d] > 1 and operand.stride(d) == 0


def _zero(
    constraints: TraceConstraints, op: str, args: Args, operands: list[torch.Tensor], axes: Sequence[Axis]
) -> bool:
    """Whether removed channels of the result hold zeros."""
    if op in ZERO_IF_ANY:
        # An outer product needs zeros from the operand that has the axis.
        labeled = [d - len(axes) for d, axis in enumerate(axes) if axis is not None]
        zeros = [x for x in operands if constraints.zero(x)]
        return all(any(-d <= x.dim() and constraints.axes(x)[d] is not None for x in zeros) for d in labeled)
    if op in ZERO_IF_ALL:
        parts = operands[1:] if op == "where" else operands
        scalars = [a for a in args[:2] if isinstance(a, (int, float))]
        whole = all(constraints.zero(x) and _spans(constraints, x, axes) for x in parts)
        return whole and not any(scalars) and op != "addcmul"
    if op in ZERO_KEEPING:
        return constraints.zero(operands[0]) and _spans(constraints, operands[0], axes) and _keeps(op, args)
    return False


def _spans(constraints: TraceConstraints, x: torch.Tensor, axes: Sequence[Axis]) -> bool:
    """Whether ``x`` is labeled on every labeled axis of the result: broadcast ones would repeat it there."""
    x_axes = (*[None] * (len(axes) - x.dim()), *constraints.axes(x))
    return all(x_axis is not None for x_axis, axis in zip(x_axes, axes, strict=True) if axis is not None)


def _keeps(op: str, args: Args) -> bool:
    """Whether the op with these numbers maps zero to zero."""
    numbers = args[1:]
    if op in ("fill", "masked_fill"):
        return isinstance(args[-1], (int, float)) and args[-1] == 0
    if op == "pow":
        return isinstance(numbers[0], (int, float)) and numbers[0] > 0
    if op in ("clamp", "hardtanh"):
        low = numbers[0] if numbers else (-1 if op == "hardtanh" else None)
        high = numbers[1] if len(numbers) > 1 else (1 if op == "hardtanh" else None)
        return all(isinstance(n, (int, float, type(None))) for n in (low, high)) and (low or 0) <= 0 <= (
            high or 0
        )
    if op in ("clamp_min", "clamp_max"):
        return isinstance(numbers[0], (int, float)) and (
            numbers[0] <= 0 if op == "clamp_min" else numbers[0] >= 0
        )
    if op == "threshold":
        return bool(numbers[0] < 0 or numbers[1] == 0)
    return not (op == "nan_to_num" and numbers and numbers[0])


def reduce(constraints: TraceConstraints, op: str, args: Args, out: Any) -> None:
    """Reductions: sums and norms over channels are exact where removed ones are zero; others freeze them."""
    x = args[0]
    source = constraints.labels(x)
    if source is None:
        return
    rest = args[2:] if op in ("linalg_vector_norm", "norm") else args[1:]
    dim = rest[0] if rest and not isinstance(rest[0], bool) else None
    dims = range(x.dim()) if dim is None or dim == [] else [dim] if isinstance(dim, int) else dim
    reduced = {d % max(x.dim(), 1) for d in dims}
    order = args[1] if op in ("linalg_vector_norm", "norm") and len(args) > 1 else 2
    exact = (op == "sum" or ("norm" in op and isinstance(order, (int, float)) and order > 0)) and source.zero[
        0
    ]
    parts = out if isinstance(out, tuple) else (out,)
    for d in reduced:
        axis = source.axes[d]
        if axis is not None and exact:
            constraints.consume(axis)
            constraints.rely(axis, f"is reduced by {op}")
        else:
            constraints.freeze_if_used(axis, f"is reduced by {op}", parts)
    for part in parts:
        keep = part.dim() == x.dim()
        axes = [
            None if d in reduced else axis for d, axis in enumerate(source.axes) if keep or d not in reduced
        ]
        constraints.put(part, axes, source.zero[0] and op not in ("logsumexp", "argmax", "argmin"))
