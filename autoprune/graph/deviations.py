"""How the ops of a pruned model differ from what labels predict: lengths, and numbers in the code."""

from collections.abc import Iterator, Mapping, Sequence
from math import isclose, isfinite, isnan
from typing import Any, NamedTuple

import numpy as np

from autoprune.graph.groups import ChannelGroup, Index
from autoprune.ops.labels import Atoms, Axis, Step
from autoprune.ops.shape_calls import FREE
from autoprune.tracing.trace import Shape, Trace

FIXED = "a fixed length in the model's code"
STAYS = "a length in the model's code that does not follow it, at"
SETS = "sets a number in the model's code"
_POWERS = (1, -1, 2, -2)
"""Of a factor, that give the width it was computed from: itself, its inverse, and their squares."""


class Lengths:
    """Predicts lengths in a model that lost channels: from the label of an axis, and its dense length.

    Args:
        traced: the trace of the labels.
        groups: those that lost channels.
        lost: these channels, by group.
    """

    def __init__(self, traced: Trace, groups: Sequence[ChannelGroup], lost: Mapping[str, Index]) -> None:
        constraints = traced.constraints
        channel = traced.channels()
        removed, of_leaf = np.zeros(constraints.size, dtype=bool), np.zeros(constraints.size, dtype=bool)
        for group in groups:
            removed[channel[atoms_of(traced, group, lost[group.name])]] = True
        for leaf in traced.leaves:
            for axis in leaf.axes:
                if axis is not None:
                    of_leaf[channel[axis]] = True
        self._removed, self._of_leaf = removed[channel], of_leaf[channel]

    def __call__(self, axis: Axis, n: int) -> int:
        """The length of an axis that has ``n`` in the dense model; FREE where no parameter says it."""
        if axis is None:
            return n
        return n - int(np.count_nonzero(self._removed[axis])) if self._of_leaf[axis].any() else FREE


def deviation(traced: Trace, length: Lengths, steps: Sequence[Step[Shape]]) -> tuple[str | None, int | None]:
    """How the ops of a pruned model differ from those of ``traced`` with lengths as predicted.

    Returns:
        The first deviation, and the number of ops before the two runs diverged, None if they never did.
    """
    constraints = traced.constraints
    common = common_steps(constraints.steps, steps)
    for before, after in zip(constraints.steps[:common], steps[:common], strict=True):
        for axes, shape in zip(before.outputs, after.outputs, strict=True):
            for axis, n in zip(axes, shape, strict=False):
                if axis is not None and length(axis, len(axis)) not in (n, FREE):
                    return f"has {STAYS} {before.op}", None
    return None, None if common == len(steps) == len(constraints.steps) else common


class ChangedNumber(NamedTuple):
    """A number that an op computes with in the dense model, and in a pruned one."""

    op: Any
    old: float
    new: float

    @property
    def text(self) -> str:
        """What its groups do."""
        return f"{SETS}: {self.old:.6g} becomes {self.new:.6g} in {self.op}"

    def widths(self) -> list[tuple[int, int]]:
        """Widths of the dense and of the pruned model that it may have been computed from, alike in both."""
        if self.old * self.new <= 0 or not (isfinite(self.old) and isfinite(self.new)):
            return []
        pairs = [(abs(self.old) ** power, abs(self.new) ** power) for power in _POWERS]
        return [(round(old), round(new)) for old, new in pairs if _is_width(old) and _is_width(new)]


def changed_numbers(traced: Trace, steps: Sequence[Step[Any]]) -> dict[tuple[int, int], ChangedNumber]:
    """All numbers that differ in the ops before two runs diverge, by place: op, number of that op."""
    dense = traced.constraints.steps
    pairs = enumerate(zip(dense[: common_steps(dense, steps)], steps, strict=False))
    return {(place, n): number for place, pair in pairs for n, number in _changed(*pair)}


def _changed(before: Step[Any], after: Step[Any]) -> Iterator[tuple[int, ChangedNumber]]:
    """The numbers of an op that differ, by place."""
    for n, (old, new) in enumerate(zip(before.numbers, after.numbers, strict=False)):
        if not (isclose(old, new, rel_tol=1e-5) or (isnan(old) and isnan(new))):
            yield n, ChangedNumber(before.op, old, new)


def common_steps(one: Sequence[Step[Any]], other: Sequence[Step[Any]]) -> int:
    """The number of ops that two runs have in common before they diverge.

    Runs diverge where the ops differ, and where one op (such as splitting a list of boxes) returns another
    number of tensors.
    """
    pairs = enumerate(zip(one, other, strict=False))
    diverged = (n for n, (a, b) in pairs if a.op is not b.op or len(a.outputs) != len(b.outputs))
    return next(diverged, min(len(one), len(other)))


def atoms_of(
    traced: Trace, group: ChannelGroup, channels: Index | None = None, axes: int | None = None
) -> Atoms:
    """All parameter atoms of a group, or of some of its channels, or only those on its first ``axes``."""
    parts = []
    for name, d, index in group.members[:axes]:
        axis = traced.axes[name, d]
        assert axis is not None
        parts.append(axis[index >= 0 if channels is None else np.isin(index, channels)])
    return np.concatenate(parts)


def _is_width(n: float) -> bool:
    return 0.5 < n < 1e9 and abs(n - round(n)) < 1e-6 * n


def kept_without(groups: Sequence[ChannelGroup], lost: Mapping[str, Index]) -> dict[str, list[int]]:
    """The channels that groups keep once they lost their last units."""
    return {group.name: group.units[: -len(lost[group.name])].ravel().tolist() for group in groups}


def failure_text(error: Exception) -> str:
    """Why a group is frozen without which the code fails."""
    return f"has {FIXED}: {error_line(error)}"


def error_line(error: Exception) -> str:
    """The kind of an error, and the first line of what it says."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}"
