"""Derives the cost model of a trace whose constraints are solved."""

from collections.abc import Sequence

import numpy as np
from torch import nn

from autoprune.cost.counts import Constant, CostModel, Terms
from autoprune.graph.groups import ChannelGroup
from autoprune.ops.labels import Atoms
from autoprune.tracing.layers import in_axis
from autoprune.tracing.trace import Trace


def cost_model(
    traced: Trace, groups: Sequence[ChannelGroup], axes: Sequence[Atoms], examples: Atoms
) -> CostModel:
    """The cost of every choice of widths of the prunable groups.

    Args:
        traced: the trace.
        groups: all groups.
        axes: the labeled axes of parameters and buffers in order, then all others that a cost depends on.
        examples: the root of one unit of each group.
    """
    assert traced.unit is not None
    axis_of = {id(axis): number for number, axis in enumerate(axes)}
    prunable = [k for k, group in enumerate(groups) if group.prunable]
    # How many channels one unit of each group has on each axis.
    column = np.full(traced.constraints.size, -1)
    column[examples[prunable]] = np.arange(len(prunable))
    lengths = np.array([*(len(axis) for axis in axes), 1])
    entry_axis = np.repeat(np.arange(len(axes)), lengths[:-1])
    entry_column = column[traced.unit[np.concatenate(axes)]] if axes else entry_axis
    counted = entry_column >= 0
    counts = np.zeros((len(axes) + 1, len(prunable)))
    np.add.at(counts, (entry_axis[counted], entry_column[counted]), 1)
    units = np.array([len(groups[k].units) for k in prunable])
    rows = np.column_stack([counts, lengths - counts @ units])
    distinct: dict[bytes, int] = {}
    number = [distinct.setdefault(row.tobytes(), len(distinct)) for row in rows]
    forms = np.stack([np.frombuffer(row) for row in distinct])
    fixed = {f: int(row[-1]) for f, row in enumerate(forms) if not row[:-1].any()}

    def term(constant: int, labels: Sequence[Atoms]) -> tuple[int, tuple[int, ...]]:
        factors = [number[axis_of[id(axis)]] for axis in labels]
        for factor in factors:
            constant *= fixed.get(factor, 1)
        return constant, tuple(f for f in factors if f not in fixed)

    def terms(parts: Sequence[tuple[int, tuple[Atoms, ...]]]) -> Terms:
        return Terms.collect([term(*part) for part in parts], one=number[-1])

    parameters = []
    for leaf in traced.leaves:
        if isinstance(leaf.tensor, nn.Parameter):
            constant = 1
            for n, axis in zip(leaf.tensor.shape, leaf.axes, strict=True):
                constant *= n if axis is None else 1
            parameters.append((constant, tuple(axis for axis in leaf.axes if axis is not None)))
    return CostModel(
        names=tuple(groups[k].name for k in prunable),
        dense=np.array([groups[k].width for k in prunable], dtype=np.int64),
        unit=np.array([groups[k].unit for k in prunable], dtype=np.int64),
        forms=forms,
        flop_terms=terms(traced.constraints.costs),
        param_terms=terms(parameters),
        activation_terms=terms(traced.constraints.activations),
        constants=_constants(traced, number),
    )


def _constants(traced: Trace, number: Sequence[int]) -> tuple[Constant, ...]:
    """What each layer has as parameters once it has no inputs; see `emptied.without_empty`.

    ``number`` is that of the form of each axis, as in `cost_model`.
    """
    parameters = {leaf.name for leaf in traced.leaves if isinstance(leaf.tensor, nn.Parameter)}
    labeled = [
        (leaf.name, d) for leaf in traced.leaves for d, axis in enumerate(leaf.axes) if axis is not None
    ]
    slot = {place: s for s, place in enumerate(labeled)}
    constants = []
    for name, layer in traced.layers.layers.items():
        weight, axis = f"{name}.weight".removeprefix("."), in_axis(layer)
        inputs, outputs = slot.get((weight, axis)), slot.get((weight, 1 - axis))
        if inputs is None or getattr(layer, "groups", 1) > 1:
            continue
        norm = traced.layers.norms.get(name)
        folded = norm and sum(f"{norm.name}.{part}" in parameters for part in ("weight", "bias"))
        change = (layer.bias is None) - (folded or 0)
        length = number[-1] if outputs is None else number[outputs]
        constants.append(Constant(number[inputs], change, length))
    return tuple(constants)
