"""Solves the constraints of a trace into channel groups, and derives their cost model."""

from collections.abc import Sequence
from itertools import takewhile

import numpy as np
import numpy.typing as npt

from autoprune.graph.groups import (
    ChannelGraph,
    ChannelGroup,
    Index,
    Length,
    Member,
    Role,
    ScaleRule,
    SizeRule,
)
from autoprune.graph.solve_costs import cost_model
from autoprune.graph.solve_paths import signal_paths
from autoprune.ops.components import connected, hashed
from autoprune.ops.labels import Atoms, Axis
from autoprune.tracing.trace import Trace

_NEVER = np.iinfo(np.int64).max
_NO_CONSUMER = "has no consumer: no layer reads its channels"


def solve(traced: Trace) -> ChannelGraph:
    """Joins atoms into channels, channels into units and units into groups.

    Two units belong to one group if they have equally many channels on the same axes of parameters, buffers
    and costs; so the length of every axis is linear in the groups' widths.
    """
    return _Solver(traced).graph()


class _Solver:
    """The steps of `solve`, and the tables that they share.

    An *axis* below is a number: first the labeled axes of parameters and buffers (slots), whose atoms are
    0 … n in order, then all other labels that a cost depends on.
    """

    def __init__(self, traced: Trace) -> None:
        constraints = self.constraints = traced.constraints
        self.traced = traced
        self.slots = [
            (leaf, d) for leaf in traced.leaves for d, axis in enumerate(leaf.axes) if axis is not None
        ]
        self.axes: list[Atoms] = [leaf.axes[d] for leaf, d in self.slots]  # type: ignore[misc]
        self.axis_of = {id(axis): number for number, axis in enumerate(self.axes)}
        for _, labels in [*constraints.costs, *constraints.activations]:
            for label in labels:
                if id(label) not in self.axis_of:
                    self.axis_of[id(label)] = len(self.axes)
                    self.axes.append(label)
        lengths = [len(axis) for axis in self.axes[: len(self.slots)]]
        self.slot_of = np.repeat(np.arange(len(lengths)), lengths)
        self.begin_of = np.cumsum([0, *lengths])
        channel = connected(constraints.size, constraints.same)
        self.unit = connected(constraints.size, [*constraints.tied, *constraints.joined], channel)
        traced.unit = self.unit
        self.made = self._first_statement(constraints.produced)
        # The reason of a unit without a consumer comes before the one that the op table stated.
        frozen = self._frozen()
        count, reasons = len(frozen), [reason for _, reason in frozen]
        self.reasons = [*reasons, *(f"{_NO_CONSUMER}; it {reason}" for reason in reasons), _NO_CONSUMER]
        self.reason = self._first_statement([atoms for atoms, _ in frozen])
        self.unused = unused = self._first_statement(constraints.consumed) == _NEVER
        self.reason[unused] = np.minimum(self.reason[unused], count) + count
        # Channels that only a view joined stay separate where none can be removed anyway.
        free = self.reason[self.unit] == _NEVER
        self.channel = connected(
            constraints.size, [(a[free[a]], b[free[a]]) for a, b in constraints.joined], channel
        )

    def _frozen(self) -> list[tuple[Atoms, str]]:
        """What the rules froze, and what is summed as zeros though an op has shifted it."""
        shifted = np.zeros(self.constraints.size, dtype=bool)
        for atoms in self.constraints.shifted:
            shifted[self.unit[atoms]] = True
        summed = [(atoms[shifted[self.unit[atoms]]], reason) for atoms, reason in self.constraints.relied]
        return [*self.constraints.frozen, *((atoms, reason) for atoms, reason in summed if len(atoms))]

    def _first_statement(self, arrays: Sequence[Atoms]) -> npt.NDArray[np.int64]:
        """For each unit (by its root) the first of ``arrays`` that has an atom of it."""
        first = np.full(self.constraints.size, _NEVER)
        if arrays:
            numbers = np.repeat(np.arange(len(arrays)), [len(atoms) for atoms in arrays])
            np.minimum.at(first, self.unit[np.concatenate(arrays)], numbers)
        return first

    def graph(self) -> ChannelGraph:
        self._sort_units()
        groups = self._groups()
        head = self._head(groups)
        read = self.traced.read.get(head, ())
        return ChannelGraph(
            groups={group.name: group for group in groups},
            cost=cost_model(self.traced, groups, self.axes, self.example),
            features={
                name: [self._feature(groups, axis, length) for axis, length in maps]
                for name, maps in self.traced.features.items()
            },
            shapes={leaf.name: tuple(leaf.tensor.shape) for leaf in self.traced.leaves},
            head=head,
            head_inputs=[self._feature(groups, axis, length) for axis, length in read],
            paths=signal_paths(self.traced, groups, self.group_of[self.unit], self.unused[self.unit]),
            norms=self.traced.layers.norms,
            responses=self.traced.responses,
            scales=tuple(
                ScaleRule(self._length(groups, axis), tuple(map(self._rows, rows)))
                for axis, rows in self.traced.scales
            ),
            sizes=tuple(
                SizeRule(size.module, size.name, size.value, self._length(groups, size.axis))
                for size in self.traced.sizes
                if any(groups[g].prunable for g in np.unique(self.group_of[self.unit[size.axis]]) if g >= 0)
            ),
        )

    def _sort_units(self) -> None:
        """Gives every unit its group number: units of one group have equally many atoms on each axis.

        Groups are numbered in the order in which their channels are first produced, large ones before small.
        """
        size, count = self.constraints.size, len(self.slot_of)
        axes = np.arange(len(self.axes))
        self.entry_axis = np.repeat(axes, [len(axis) for axis in self.axes])
        self.entry_root = self.unit[np.concatenate(self.axes)] if self.axes else self.slot_of
        keys = np.zeros(size, dtype=np.uint64)
        np.add.at(keys, self.entry_root, hashed(axes + 1)[self.entry_axis])
        # A channel is counted at its root, which is in a slot if any of its atoms is, as slots come first.
        roots = np.flatnonzero(self.channel[:count] == np.arange(count))
        channels = np.bincount(self.unit[roots], minlength=size)
        keys ^= hashed(-1 - 2 * channels - (self.reason < _NEVER))

        present = np.zeros(size, dtype=bool)
        present[self.unit[:count]] = True
        units = np.flatnonzero(present & (self.made < _NEVER))
        _, first, number, widths = np.unique(
            keys[units], return_index=True, return_inverse=True, return_counts=True
        )
        made = np.full(len(first), _NEVER)
        np.minimum.at(made, number, self.made[units])
        in_order = np.lexsort((first, -widths, made))
        self.example = units[first[in_order]]
        self.group_of = np.full(size, -1)
        self.group_of[units] = np.argsort(in_order)[number]

    def _groups(self) -> list[ChannelGroup]:
        """All groups; their channels are numbered in the order of the first producer's axis."""
        count = len(self.slot_of)
        group, channel = self.group_of[self.unit[:count]], self.channel[:count]
        roles, first = self._roles()
        slots: list[list[int]] = [[] for _ in self.example]
        # A slot is listed where it begins and where it changes from one group to another.
        begins = np.ones(count, dtype=bool)
        begins[1:] = (np.diff(group) != 0) | (np.diff(self.slot_of) != 0)
        begins &= group >= 0
        for g, s in sorted(set(zip(group[begins].tolist(), self.slot_of[begins].tolist(), strict=True))):
            slots[g].append(s)
        leading = [min(of_group, key=lambda s: (first[s], s)) for of_group in slots]

        atoms = np.flatnonzero(group >= 0)
        led = np.array(leading, dtype=np.int64)[group[atoms]] == self.slot_of[atoms]
        atoms = np.concatenate([atoms[led], atoms])
        place = np.full(self.constraints.size, _NEVER)
        np.minimum.at(place, channel[atoms], np.arange(len(atoms)))
        atoms = atoms[place[channel[atoms]] == np.arange(len(atoms))]
        atoms = atoms[np.argsort(group[atoms], kind="stable")]
        begin = np.searchsorted(group[atoms], np.arange(len(slots) + 1))
        self.number = np.full(self.constraints.size, -1)
        self.number[channel[atoms]] = np.arange(len(atoms)) - begin[group[atoms]]
        index = self.number[channel]

        names: dict[str, int] = {}
        groups = []
        for g, of_group in enumerate(slots):
            name = self.slots[leading[g]][0].name.removesuffix(".weight").removesuffix("_weight")
            names[name] = names.get(name, 0) + 1
            members = []
            for s in of_group:
                span = slice(self.begin_of[s], self.begin_of[s + 1])
                leaf, d = self.slots[s]
                members.append(Member(leaf.name, d, np.where(group[span] == g, index[span], -1)))
            groups.append(
                self._group(
                    name if names[name] == 1 else f"{name}#{names[name]}",
                    self.unit[atoms[begin[g] : begin[g + 1]]],
                    members,
                    [roles[s] for s in of_group],
                )
            )
        return groups

    def _group(self, name: str, unit: Atoms, members: list[Member], roles: list[Role]) -> ChannelGroup:
        """Builds a group from the unit of each of its channels, [width]."""
        roots, first, number = np.unique(unit, return_index=True, return_inverse=True)
        units = np.argsort(first[number], kind="stable").reshape(len(roots), -1)
        reason = self.reason[roots].min()
        text = self.reasons[reason] if reason < _NEVER else None
        if text is None and len(units) == 1:
            text = "can only be removed as a whole"
        return ChannelGroup(
            name=name,
            width=len(unit),
            unit=units.shape[1],
            prunable=text is None,
            reason=text,
            members=members,
            roles=roles,
            units=units,
        )

    def _roles(self) -> tuple[list[Role], npt.NDArray[np.int64]]:
        """The role of each slot, and the number of the first statement that produces its channels."""
        constraints, count = self.constraints, len(self.slots)
        first = np.full(count, _NEVER)
        for number in reversed(range(len(constraints.produced))):
            first[self._slots_in(constraints.produced[number])] = number
        normalized, consumed = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        for arrays, flags in ((constraints.normalized, normalized), (constraints.consumed, consumed)):
            for atoms in arrays:
                flags[self._slots_in(atoms)] = True
        names = {leaf.name for leaf in self.traced.leaves}
        roles: list[Role] = []
        for s, (leaf, _) in enumerate(self.slots):
            statistics = f"{leaf.name.rpartition('.')[0]}.running_var".removeprefix(".") in names
            if first[s] < _NEVER:
                roles.append("producer")
            elif normalized[s] or (statistics and leaf.tensor.dim() == 1):
                roles.append("norm")
            else:
                roles.append("consumer" if consumed[s] else "other")
        return roles, first

    def _slots_in(self, atoms: Atoms) -> Index:
        """The slots that have any of these atoms."""
        slot = self.axis_of.get(id(atoms), len(self.slots))
        if slot < len(self.slots):
            return np.array([slot])
        return np.unique(self.slot_of[atoms[atoms < len(self.slot_of)]])

    def _head(self, groups: Sequence[ChannelGroup]) -> str:
        """The smallest module that gets feature maps and holds all layers whose outputs no layer reads."""
        unread = [group for group in groups if (group.reason or "").startswith(_NO_CONSUMER)]
        parents = [m.tensor.split(".")[:-2] for group in unread for m in group.members if m.axis == 0]
        levels = zip(*parents, strict=False)
        shared = [level[0] for level in takewhile(lambda level: len(set(level)) == 1, levels)]
        while shared and not self.traced.read.get(".".join(shared)):
            shared.pop()
        return ".".join(shared)

    def _feature(self, groups: Sequence[ChannelGroup], axis: Axis, length: int) -> tuple[str | None, Index]:
        """The group of most channels on a feature map's axis, and the channel at each position [length]."""
        no_group: tuple[None, Index] = (None, np.full(length, -1))
        if axis is None:
            return no_group
        group = self.group_of[self.unit[axis]]
        if not (group >= 0).any():
            return no_group
        largest = int(np.bincount(group[group >= 0]).argmax())
        return groups[largest].name, np.where(group == largest, self.number[self.channel[axis]], -1)

    def _rows(self, atoms: Atoms) -> tuple[str, int, Index]:
        """The tensor, the axis and the positions of atoms of one axis."""
        slot = int(self.slot_of[atoms[0]])
        leaf, d = self.slots[slot]
        return leaf.name, d, atoms - self.begin_of[slot]

    def _length(self, groups: Sequence[ChannelGroup], axis: Atoms) -> Length:
        """The length of an axis in terms of the groups' channels."""
        group, number = self.group_of[self.unit[axis]], self.number[self.channel[axis]]
        parts = [(groups[g].name, np.where(group == g, number, -1)) for g in np.unique(group[group >= 0])]
        return Length(len(axis), tuple(parts))
