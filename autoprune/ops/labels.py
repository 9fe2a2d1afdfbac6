"""Atoms and labels: what one traced forward pass learns about which channels belong together.

Every index of every parameter and buffer axis is an *atom*, an integer. An axis of any tensor is either
fixed (`None`) or labeled with an int64 array that names one atom for each of its indices. Op rules
carry labels from inputs to outputs and state constraints on atoms here; nothing is solved before the end.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import numpy as np
import torch

Atoms: TypeAlias = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Axis: TypeAlias = Atoms | None
Args: TypeAlias = tuple[Any, ...]

OutputT = TypeVar("OutputT")

MARK = "_autoprune"  # begins the names of the attributes by which a trace knows tensors again
_DERIVED = f"{MARK}_derived"
_UNUSED = f"{MARK}_unused"
_ATTRIBUTE = f"{MARK}_labels"


@dataclass(slots=True)
class Labels:
    """The labels of one tensor.

    Attributes:
        axes: one label per axis.
        zero: one-element list, shared by a tensor and its views: whether a channel whose parameters are
            all zero holds zeros here. Only then may channels be summed over.
        owner: the trace that the atoms belong to, so that a label cached by the model never leaks into
            another one.
    """

    axes: tuple[Axis, ...]
    zero: list[bool]
    owner: "TraceConstraints"


class Step(NamedTuple, Generic[OutputT]):
    """An op that ran.

    Attributes:
        op: the overload that torch dispatched.
        numbers: the scalars that it computed with.
        outputs: for each tensor that it returned, the labels of its axes (in a trace) or its shape.
    """

    op: Any
    numbers: tuple[float, ...]
    outputs: list[OutputT]


CallKey: TypeAlias = tuple[str, Any, int]
"""A call by the name of the module that made it, the function, and which of its calls there it is, from 1."""


class ShapeCall(NamedTuple):
    """A call that gives a tensor a shape.

    Attributes:
        func: the function.
        read: the labels of the tensor's axes.
        outputs: for each tensor that it returned, the label and the length of every axis.
    """

    func: Any
    read: tuple[Axis, ...]
    outputs: tuple[tuple[tuple[Axis, int], ...], ...]


@dataclass(eq=False)
class TraceConstraints:
    """Everything that the op rules have stated about the atoms.

    Attributes:
        size: number of atoms handed out.
        same: pairs of arrays, position by position the same channel.
        joined: the same, for channels that a change of shape made one.
        tied: pairs of arrays, position by position different channels that go together.
        frozen: arrays of atoms that can't be removed, with the reason why.
        shifted: arrays of atoms whose channels, though zero before, an op made other numbers of.
        relied: arrays of atoms that are summed as zeros, with the reason that stands against it if shifted.
        produced, consumed, normalized: arrays of atoms made by a convolution or product, summed over by
            one, or scaled by a norm; in the order of execution.
        costs: multiply-adds as a constant and the axes whose lengths multiply it.
        activations: bytes written by an op, in the same form.
        empty: arrays of atoms seen on a tensor without elements.
        seen: ids of all tensors that went into an op; those of parameters and buffers stay valid.
        steps: every op but copies, in order of execution.
        guesses: arrays of atoms for which a rule had to assume how the code computes a size.
        follows: ids of the weights of modules that run right now, and whose number of groups `prune` adapts.
        shape_calls: the calls that gave a tensor a shape.
        read_at: length of ``costs`` when code first read values that were computed from parameters.
    """

    size: int = 0
    same: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    joined: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    tied: list[tuple[Atoms, Atoms]] = field(default_factory=list)
    frozen: list[tuple[Atoms, str]] = field(default_factory=list)
    shifted: list[Atoms] = field(default_factory=list)
    relied: list[tuple[Atoms, str]] = field(default_factory=list)
    produced: list[Atoms] = field(default_factory=list)
    consumed: list[Atoms] = field(default_factory=list)
    normalized: list[Atoms] = field(default_factory=list)
    costs: list[tuple[int, tuple[Atoms, ...]]] = field(default_factory=list)
    activations: list[tuple[int, tuple[Atoms, ...]]] = field(default_factory=list)
    empty: list[Atoms] = field(default_factory=list)
    seen: set[int] = field(default_factory=set)
    steps: list[Step[tuple[Axis, ...]]] = field(default_factory=list)
    guesses: list[Atoms] = field(default_factory=list)
    follows: set[int] = field(default_factory=set)
    shape_calls: dict[CallKey, ShapeCall] = field(default_factory=dict)
    read_at: int | None = None
    _leaves: dict[int, Labels] = field(default_factory=dict)
    _leaf_zeros: set[int] = field(default_factory=set)
    _stated: set[tuple[object, ...]] = field(default_factory=set)

    def fresh(self, count: int) -> Atoms:
        """Hands out ``count`` new atoms."""
        self.size += count
        return np.arange(self.size - count, self.size, dtype=np.int64)

    def leaf(self, tensor: torch.Tensor) -> Labels:
        """Labels a parameter or buffer; the caller keeps it alive. Axes of length one are fixed."""
        axes = tuple(self.fresh(n) if n > 1 else None for n in tensor.shape)
        self._leaves[id(tensor)] = labels = Labels(axes, [True], self)
        self._leaf_zeros.add(id(labels.zero))
        return labels

    def labels(self, tensor: torch.Tensor) -> Labels | None:
        """The labels of ``tensor``, or None where all its axes are fixed."""
        leaf = self._leaves.get(id(tensor))
        if leaf is not None:
            return leaf
        labels: Labels | None = tensor.__dict__.get(_ATTRIBUTE)
        return labels if labels is not None and labels.owner is self else None

    def axes(self, tensor: torch.Tensor) -> tuple[Axis, ...]:
        """One label per axis of ``tensor``."""
        labels = self.labels(tensor)
        return labels.axes if labels else (None,) * tensor.dim()

    def zero(self, tensor: torch.Tensor) -> bool:
        """Whether removed channels are known to hold zeros in ``tensor``."""
        labels = self.labels(tensor)
        return labels is not None and labels.zero[0]

    def is_weight(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is a parameter or buffer, or a view of one: its zeros are certain."""
        labels = self.labels(tensor)
        return labels is not None and id(labels.zero) in self._leaf_zeros

    def put(self, tensor: torch.Tensor, axes: Sequence[Axis], zero: bool | list[bool] = False) -> None:
        """Labels an op's output. A list as ``zero`` is shared with the tensor that it is a view of."""
        if any(axis is not None for axis in axes):
            cell = zero if isinstance(zero, list) else [zero]
            tensor.__dict__[_ATTRIBUTE] = Labels(tuple(axes), cell, self)

    def derive(self, tensor: torch.Tensor) -> None:
        """Records that ``tensor`` was computed from parameters, labeled or not."""
        tensor.__dict__[_DERIVED] = self

    def derived(self, tensor: torch.Tensor) -> bool:
        """Whether ``tensor`` is a parameter or was computed from one."""
        return id(tensor) in self._leaves or tensor.__dict__.get(_DERIVED) is self

    def unify(self, a: Axis, b: Axis, op: str) -> Axis:
        """States that two axes hold the same channels; returns the label that stands for both."""
        if a is b:
            return a
        if a is None or b is None:
            labeled = b if a is None else a
            self.freeze(labeled, f"meets an axis of fixed length in {op}")
            return labeled
        if len(a) != len(b):  # such as the heads of queries, several of which read the same keys
            for axis in (a, b):
                self.freeze(axis, f"meets an axis of another length in {op}")
            return a
        if self._first("same", a, b):
            self.same.append((a, b))
        return a

    def join(self, rows: Atoms) -> Atoms:
        """States that the channels in each column of ``rows`` [k, n] are one; returns their label."""
        first = np.ascontiguousarray(rows[0])
        self.joined.extend((first, row) for row in rows[1:])
        return first

    def tie(self, rows: Atoms) -> None:
        """States that the channels in each row of ``rows`` [n, k] can only be removed together."""
        for column in range(1, rows.shape[1]):
            self.tied.append((rows[:, 0], rows[:, column]))

    def freeze(self, axis: Axis, reason: str) -> None:
        """States that the channels on ``axis`` can't be removed."""
        if axis is not None and self._first("frozen", axis):
            self.frozen.append((axis, reason))

    def fixed(self, axis: Axis) -> bool:
        """Whether an axis has no channels, or such as can't be removed for sure."""
        return axis is None or ("frozen", id(axis)) in self._stated

    def shift(self, axis: Axis) -> None:
        """States that removed channels on ``axis`` become other numbers here, such as a bias, than zero."""
        if axis is not None and self._first("shifted", axis):
            self.shifted.append(axis)

    def rely(self, axis: Axis, reason: str) -> None:
        """States that ``axis`` can lose channels only if no op on the way here has shifted them."""
        if axis is not None and self._first("relied", axis):
            self.relied.append((axis, reason))

    def freeze_if_used(self, axis: Axis, reason: str, results: Sequence[torch.Tensor]) -> None:
        """States that the channels on ``axis`` can't be removed if anything ever reads one of ``results``."""
        if axis is not None:
            for tensor in results:
                tensor.__dict__.setdefault(_UNUSED, []).append((self, axis, reason))

    def use(self, tensor: torch.Tensor) -> None:
        """States that something reads ``tensor``."""
        for owner, axis, reason in tensor.__dict__.get(_UNUSED, ()):
            if owner is self:
                self.freeze(axis, reason)

    def produce(self, axis: Axis) -> None:
        """States that the channels on ``axis`` are made here."""
        if axis is not None and self._first("produced", axis):
            self.produced.append(axis)

    def consume(self, axis: Axis) -> None:
        """States that the channels on ``axis`` are summed over here."""
        if axis is not None and self._first("consumed", axis):
            self.consumed.append(axis)

    def normalize(self, axis: Axis) -> None:
        """States that a norm scales the channels on ``axis``."""
        if axis is not None and self._first("normalized", axis):
            self.normalized.append(axis)

    def guess(self, axis: Atoms) -> None:
        """States that pruning ``axis`` rests on an assumption about a size in the code."""
        if self._first("guess", axis):
            self.guesses.append(axis)

    def read(self, tensor: torch.Tensor, how: str) -> None:
        """States that code outside of torch reads the values of ``tensor``, for a use that can't be seen."""
        self.use(tensor)
        for axis in self.axes(tensor):
            self.freeze(axis, f"has values that the model's code reads, by {how}")
        if self.read_at is None and self.derived(tensor) and id(tensor) not in self._leaves:
            self.read_at = len(self.costs)

    @property
    def may_branch(self) -> bool:
        """Whether layers ran after code had read values: with others it may run other ops there."""
        return self.read_at is not None and len(self.costs) > self.read_at

    @property
    def by_values(self) -> bool:
        """Whether numbers and lengths may depend on values: code read some, or an op picked by them."""
        picks = (
            torch.Tag.dynamic_output_shape in step.op.tags or "nms" in str(step.op) for step in self.steps
        )
        return self.read_at is not None or any(picks)

    def merge(self, other: "TraceConstraints") -> None:
        """Adds what a trace of the same parameters stated, whose other atoms begin at ``size``; no costs."""
        for name in "same joined tied frozen shifted relied produced consumed normalized guesses".split():  # noqa: SIM905
            getattr(self, name).extend(getattr(other, name))
        self.size = max(self.size, other.size)

    def cost(self, constant: int, *lengths: tuple[int, Axis]) -> None:
        """Counts multiply-adds: ``constant`` times all lengths, each given with its axis' label."""
        self.costs.append(_product(constant, lengths))

    def activation(self, constant: int, *lengths: tuple[int, Axis]) -> None:
        """Counts the bytes of an op's output, in the same form as `cost`."""
        self.activations.append(_product(constant, lengths))

    def _first(self, relation: str, *arrays: Atoms) -> bool:
        """Whether ``relation`` is stated of these arrays for the first time."""
        # The lists keep the arrays alive, so an id is never reused.
        key = (relation, *map(id, arrays))
        if key in self._stated:
            return False
        self._stated.add(key)
        return True


def _product(constant: int, lengths: Sequence[tuple[int, Axis]]) -> tuple[int, tuple[Atoms, ...]]:
    fixed = prod(n for n, axis in lengths if axis is None)
    return constant * fixed, tuple(axis for _, axis in lengths if axis is not None)
