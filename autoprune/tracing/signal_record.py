"""Records which op reads what another one wrote: the ways that the input's signal takes through a model."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from autoprune.ops.labels import MARK, Axis

INPUT = -1
"""Stands for the example inputs among the sources of a read."""
_ATTRIBUTE = f"{MARK}_signal"


class Read(NamedTuple):
    """One tensor that an op reads.

    Attributes:
        sources: the numbers of the ops that wrote to it so far, `INPUT` among them for an example input.
        axes: the labels of its axes.
    """

    sources: tuple[int, ...]
    axes: tuple[Axis, ...]


class SignalOp(NamedTuple):
    """One op that reads something computed from the inputs.

    Attributes:
        reads: what it reads, without parameters and what is computed from them alone.
        outputs: the labels of each tensor that it returned.
        layer: the weight that it multiplies with, ``None`` for other ops than products with a weight.
        made: the label of the channels that the layer makes; a single channel has none.
    """

    reads: tuple[Read, ...]
    outputs: tuple[tuple[Axis, ...], ...]
    layer: str | None
    made: Axis


@dataclass(eq=False)
class _Cell:
    """Who wrote to a tensor; a tensor and its views share it.

    Attributes:
        owner: the record that the numbers belong to: a model may cache tensors.
        sources: ops in order.
        weight: the parameter that it is, or is computed from.
    """

    owner: "SignalRecord"
    sources: list[int] = field(default_factory=list)
    weight: str | None = None


@dataclass(eq=False)
class SignalRecord:
    """The ops that carry the input's signal, in order, and what the model returned of it.

    Attributes:
        ops: the ops.
        ends: the tensors that the model returned.
    """

    ops: list[SignalOp] = field(default_factory=list)
    ends: list[Read] = field(default_factory=list)
    _leaves: dict[int, _Cell] = field(default_factory=dict)

    def leaf(self, name: str, tensor: torch.Tensor) -> None:
        """Names a parameter or buffer, which the caller keeps alive."""
        self._leaves[id(tensor)] = _Cell(self, weight=name)

    @contextmanager
    def of(self, tensors: Iterable[torch.Tensor]) -> Iterator[None]:
        """States that these are the example inputs, inside the block."""
        sources = list(tensors)
        for tensor in sources:
            tensor.__dict__[_ATTRIBUTE] = _Cell(self, [INPUT])
        try:
            yield
        finally:
            for tensor in sources:
                tensor.__dict__.pop(_ATTRIBUTE, None)

    def returned(self, tensor: torch.Tensor, axes: tuple[Axis, ...]) -> None:
        """States that the model returned a tensor."""
        cell = self._cell(tensor)
        if cell is not None and cell.sources:
            self.ends.append(Read(tuple(cell.sources), axes))

    def writers(self, tensor: torch.Tensor) -> tuple[int, ...]:
        """The ops that wrote to a tensor so far."""
        cell = self._cell(tensor)
        return () if cell is None else tuple(cell.sources)

    def op(
        self,
        tensors: Sequence[torch.Tensor],
        axes: Sequence[tuple[Axis, ...]],
        outputs: Sequence[torch.Tensor],
        output_axes: Sequence[tuple[Axis, ...]],
        product: int | None,
        view: bool,
        of_shape: bool = False,
    ) -> None:
        """Records an op.

        Args:
            tensors: what it read.
            axes: the labels of each.
            outputs: what it returned.
            output_axes: the labels of each.
            product: the axis of channels in the result of a convolution or matrix product, else ``None``.
            view: whether its results share the memory of ``tensors[0]``, and it wrote nothing.
            of_shape: whether it reads no more of ``tensors[0]`` than its shape, which carries no signal.
        """
        cells = [self._cell(tensor) for tensor in tensors]
        if view and cells:
            for tensor in outputs if cells[0] is not None else ():
                tensor.__dict__[_ATTRIBUTE] = cells[0]
            return
        read = list(zip(cells, tensors, axes, strict=True))[1 if of_shape else 0 :]
        weights = [c.weight for c, x, _ in read if c and c.weight and x.dim() > 1]
        reads = [
            Read(tuple(cell.sources), of_tensor)
            for cell, _, of_tensor in read
            if cell is not None and cell.sources
        ]
        number = None
        if reads:
            number = len(self.ops)
            layer = weights[0] if product is not None and weights else None
            made = None
            if layer is not None and product is not None:
                # A product with the weight on the left has the channels that it makes before the others.
                left = product < 0 and cells[-2] is not None and cells[-2].weight is not None
                made = output_axes[0][max(product - left, -len(output_axes[0]))]
            self.ops.append(SignalOp(tuple(reads), tuple(output_axes), layer, made))
        for tensor in outputs:
            written = next((c for c, x in zip(cells, tensors, strict=True) if x is tensor), None)
            if written is None:
                weight = weights[0] if weights and not reads else None
                tensor.__dict__[_ATTRIBUTE] = written = _Cell(self, weight=weight)
            if number is not None:
                written.sources.append(number)

    def _cell(self, tensor: torch.Tensor) -> _Cell | None:
        cell: Any = self._leaves.get(id(tensor)) or tensor.__dict__.get(_ATTRIBUTE)
        return cell if cell is not None and cell.owner is self else None
