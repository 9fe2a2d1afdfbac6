"""Which rows of a weight a tensor is made of, through views only, and whether anything else reads them.

An attention without a scale divides by the square root of its width, a pruned one by a smaller number. A
factor in the rows that make the queries undoes that exactly, if they make nothing but queries.
"""

# ruff: noqa: SIM905 (names of ops read best as words)
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from autoprune.ops.labels import MARK, Atoms, TraceConstraints
from autoprune.ops.rules_product import ATTENTIONS, scale_of

_ATTRIBUTE = f"{MARK}_origin"
_MOVES = set(
    "view _unsafe_view reshape _reshape_alias permute transpose t unsqueeze squeeze expand select unbind "
    "slice split split_with_sizes chunk alias detach clone contiguous _to_copy".split()
)
_VIEWS = {"view", "_unsafe_view", "reshape", "_reshape_alias"}
_COPIES = {"alias", "detach", "clone", "contiguous", "_to_copy"}
_MADE_BY = {"mm": (None, 1), "addmm": (0, 2)}  # places of the bias and of the weight
REASON = "sets the scale of attention"


@dataclass(eq=False)
class _Node:
    """A tensor: the result of a product, or what an op that only moves elements made of another one.

    Attributes:
        owner: the record that it belongs to.
        rows: labels of the channels of the weight and of the bias that a product made it with.
        shape: of the product's result.
        parent, func, args, part: how another tensor was made: the result ``part`` of the op.
    """

    owner: "Origins"
    rows: tuple[Atoms, ...] = ()
    shape: tuple[int, ...] = ()
    parent: "_Node | None" = None
    func: Any = None
    args: tuple[Any, ...] = ()
    part: int | None = None

    @property
    def root(self) -> "_Node":
        """The result of the product."""
        node = self
        while node.parent is not None:
            node = node.parent
        return node

    def atoms(self) -> list[Atoms]:
        """The channels of the weight and of the bias that the tensor is made with."""
        numbers = np.unique(self._numbers().numpy())
        return [label[numbers] for label in self.root.rows]

    def _numbers(self) -> torch.Tensor:
        """For each element the number of its row, in the tensor's shape."""
        if self.parent is None:
            return torch.arange(self.shape[-1]).expand(self.shape)
        numbers = self.parent._numbers()
        if self.func is None:
            return numbers
        out: Any = self.func(numbers, *self.args)
        result: torch.Tensor = out if self.part is None else out[self.part]
        return result


@dataclass(eq=False)
class Origins:
    """Where tensors come from, and what reads them.

    Attributes:
        queries: the queries of each attention without a scale, and the label of their width.
    """

    constraints: TraceConstraints
    queries: list[tuple[_Node, Atoms]] = field(default_factory=list)
    _reads: list[_Node] = field(default_factory=list)
    _weight_reads: list[Atoms] = field(default_factory=list)
    _weights: set[int] = field(default_factory=set)

    def weight(self, tensor: torch.Tensor) -> None:
        """States that a tensor is a parameter."""
        self._weights.add(id(tensor))

    def op(
        self,
        func: Any,
        name: str,
        args: Sequence[Any],
        tensors: Sequence[torch.Tensor],
        outputs: Sequence[torch.Tensor],
    ) -> None:
        """Records an op after it ran."""
        if name in _MOVES and tensors and tensors[0] is args[0]:
            self._moved(func, name, args, outputs)
            return
        reads = list(tensors)
        if name in ATTENTIONS and scale_of(name, tuple(args)) is None:
            axis, node = self.constraints.axes(args[0])[-1], self._node(args[0])
            if axis is not None and node is not None:
                self.queries.append((node, axis))
                reads = reads[1:]
            else:
                self.constraints.freeze(axis, REASON)
        if name in _MADE_BY:
            bias, weight = _MADE_BY[name]
            made = [args[weight], *([] if bias is None else [args[bias]])]
            if all(self._of_weight(x) and self.constraints.axes(x)[-1] is not None for x in made):
                rows = tuple(self.constraints.axes(x)[-1] for x in made)
                outputs[0].__dict__[_ATTRIBUTE] = _Node(self, rows, tuple(outputs[0].shape))  # type: ignore[arg-type]
                reads = [x for x in reads if not any(x is each for each in made)]
        for tensor in reads:
            node = self._node(tensor)
            if node is not None:
                self._reads.append(node)
            elif self._of_weight(tensor):
                self._weight_reads += [axis for axis in self.constraints.axes(tensor) if axis is not None]

    def _moved(self, func: Any, name: str, args: Sequence[Any], outputs: Sequence[torch.Tensor]) -> None:
        if self._of_weight(args[0]):
            for output in outputs:
                output.__dict__[_ATTRIBUTE] = self
            return
        parent = self._node(args[0])
        if parent is None:
            return
        for part, output in enumerate(outputs):
            node = _Node(self, parent=parent)
            if name in _VIEWS:
                node.func, node.args = torch.reshape, (args[1],)
            elif name not in _COPIES:
                single = str(func._schema.returns[0].type) == "Tensor"
                node.func, node.args, node.part = func, tuple(args[1:]), None if single else part
            output.__dict__[_ATTRIBUTE] = node

    def _of_weight(self, tensor: torch.Tensor) -> bool:
        """Whether a tensor is a parameter or a view of one."""
        return id(tensor) in self._weights or tensor.__dict__.get(_ATTRIBUTE) is self

    def _node(self, tensor: torch.Tensor) -> _Node | None:
        node = tensor.__dict__.get(_ATTRIBUTE)
        return node if isinstance(node, _Node) and node.owner is self else None

    def settle(self) -> list[tuple[Atoms, list[Atoms]]]:
        """The label of each width that sets a scale, with the rows to scale; freezes those without."""
        sites = [(axis, node.atoms()) for node, axis in self.queries]
        if not sites:
            return []
        of_queries = np.unique(np.concatenate([rows for _, atoms in sites for rows in atoms]))
        others = [axis[np.isin(axis, of_queries)] for axis in self._weight_reads]
        for node in self._reads:
            if any(np.isin(rows, of_queries).any() for rows in node.root.rows):
                others += node.atoms()
        taken = set(np.concatenate(others).tolist()) if others else set()
        settled: list[tuple[Atoms, list[Atoms]]] = []
        for axis, atoms in sites:
            if any(np.array_equal(axis, a) and all(map(np.array_equal, atoms, b)) for a, b in settled):
                continue  # the same layers, called again
            rows = {atom for each in atoms for atom in each.tolist()}
            if taken & rows:
                self.constraints.freeze(axis, REASON)
            else:
                settled.append((axis, atoms))
                taken |= rows
        return settled
