"""Solves the facts of a trace into channel groups, and derives their cost model."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from torch import nn

from autoprune.cost.counts import CostModel, Terms
from autoprune.graph.groups import ChannelGraph, ChannelGroup, Index, Role
from autoprune.graph.labels import Atoms, Axis
from autoprune.graph.trace import Trace

_NEVER = np.iinfo(np.int64).max
_NO_CONSUMER = "has no consumer: no layer reads its channels"


def connected(size: int, pairs: Sequence[tuple[Atoms, Atoms]], start: Atoms | None = None) -> Atoms:
    """Smallest member of each element's component, [size], by pointer jumping.

    Args:
        size: number of elements.
        pairs: arrays of elements that are joined position by position.
        start: components that are joined already, as this function returned them.
    """
    root: Atoms = np.arange(size, dtype=np.int64) if start is None else start.copy()
    if not pairs:
        return root
    a, b = (np.concatenate([pair[k] for pair in pairs]) for k in (0, 1))
    while True:
        low, high = np.minimum(root[a], root[b]), np.maximum(root[a], root[b])
        apart = low != high
        if not apart.any():
            return root
        a, b = a[apart], b[apart]
        np.minimum.at(root, high[apart], low[apart])
        while True:
            jumped = root[root]
            if (jumped == root).all():
                break
            root = jumped


def solve(traced: Trace) -> ChannelGraph:
    """Joins atoms to channels, channels to units and units to groups.

    Two units are of one group where they have equally many channels on the same axes of parameters,
    buffers and costs; so every axis' length is linear in the groups' widths.
    """
    return _Solver(traced).graph()


class _Solver:
    """The steps of `solve`, which share their tables.

    An *axis* below is a number: first the labelled axes of parameters and buffers (slots), whose atoms are
    0 … n in order, then every other label that a cost depends on.
    """

    def __init__(self, traced: Trace) -> None:
        facts = self.facts = traced.facts
        self.traced = traced
        self.slots = [
            (leaf, d) for leaf in traced.leaves for d, axis in enumerate(leaf.axes) if axis is not None
        ]
        self.axes: list[Atoms] = [leaf.axes[d] for leaf, d in self.slots]  # type: ignore[misc]
        self.axis_of = {id(axis): number for number, axis in enumerate(self.axes)}
        for _, labels in [*facts.costs, *facts.activations]:
            for label in labels:
                if id(label) not in self.axis_of:
                    self.axis_of[id(label)] = len(self.axes)
                    self.axes.append(label)
        lengths = [len(axis) for axis in self.axes[: len(self.slots)]]
        self.slot_of = np.repeat(np.arange(len(lengths)), lengths)
        self.position_of = np.concatenate([np.arange(n) for n in lengths]) if lengths else self.slot_of
        channel = connected(facts.size, facts.same)
        self.unit = connected(facts.size, [*facts.tied, *facts.joined], channel)
        traced.unit = self.unit
        self.made = self._first_statement(facts.produced)
        # A unit without a consumer has a reason of its own, and the one that the op table gave after it.
        count = len(facts.frozen)
        reasons = [reason for _, reason in facts.frozen]
        self.reasons = [*reasons, *(f"{_NO_CONSUMER}; it {reason}" for reason in reasons), _NO_CONSUMER]
        self.reason = self._first_statement([atoms for atoms, _ in facts.frozen])
        unused = self._first_statement(facts.consumed) == _NEVER
        self.reason[unused] = np.minimum(self.reason[unused], count) + count
        # Channels that only a view joined stay apart where nothing can be removed anyway.
        free = self.reason[self.unit] == _NEVER
        self.channel = connected(facts.size, [(a[free[a]], b[free[a]]) for a, b in facts.joined], channel)

    def _first_statement(self, arrays: Sequence[Atoms]) -> npt.NDArray[np.int64]:
        """For each unit (by its root) the first of ``arrays`` that has an atom of it."""
        first = np.full(self.facts.size, _NEVER)
        for number in reversed(range(len(arrays))):
            first[self.unit[arrays[number]]] = number
        return first

    def graph(self) -> ChannelGraph:
        self._count_units()
        self._sort_units()
        groups = self._groups()
        return ChannelGraph(
            groups={group.name: group for group in groups},
            cost=self._cost_model(groups),
            features={
                name: [self._feature(groups, axis, length) for axis, length in maps]
                for name, maps in self.traced.features.items()
            },
            shapes={leaf.name: tuple(leaf.tensor.shape) for leaf in self.traced.leaves},
        )

    def _count_units(self) -> None:
        """How many atoms each unit has on each axis: `entries` are (root, axis, count), by root."""
        numbers = np.repeat(np.arange(len(self.axes)), [len(axis) for axis in self.axes])
        atoms = np.concatenate(self.axes) if self.axes else np.zeros(0, dtype=np.int64)
        roots = self.unit[atoms]
        relevant = self.made[roots] < _NEVER
        keys = roots[relevant] * len(self.axes) + numbers[relevant]
        keys, self.count = np.unique(keys, return_counts=True)
        self.entry_root, self.entry_axis = np.divmod(keys, max(len(self.axes), 1))

    def _sort_units(self) -> None:
        """Gives every unit its group number: units of one group have equal counts everywhere."""
        roots, begin = np.unique(self.entry_root, return_index=True)
        # A channel is counted at its root, which is in a slot if any of its atoms is: slots come first.
        in_slots = np.arange(len(self.slot_of))
        channels = np.bincount(
            self.unit[in_slots[self.channel[in_slots] == in_slots]], minlength=self.facts.size
        )
        sums = (
            np.add.reduceat(_mix(self.entry_axis, self.count), begin)
            if len(roots)
            else begin.astype(np.uint64)
        )
        keys = sums ^ _mix(channels[roots], (self.reason[roots] < _NEVER).astype(np.int64))
        _, inverse = np.unique(keys, return_inverse=True)
        self.group_of = np.full(self.facts.size, -1)
        self.group_of[roots] = inverse

    def _groups(self) -> list[ChannelGroup]:
        group = self.group_of[self.unit[: len(self.slot_of)]]
        by_group = np.argsort(group, kind="stable")
        found, begin = np.unique(group[by_group], return_index=True)
        parts = [p for p, g in zip(np.split(by_group, begin[1:]), found, strict=True) if g >= 0]
        parts.sort(key=lambda atoms: int(self.made[self.unit[atoms]].min()))
        roles, first = self._roles()
        names: dict[str, int] = {}
        groups = []
        for atoms in parts:
            slots = np.unique(self.slot_of[atoms])
            slot = min(slots, key=lambda s: (first[s], s))
            leaf = self.slots[slot][0]
            name = leaf.name.removesuffix(".weight").removesuffix("_weight")
            names[name] = names.get(name, 0) + 1
            name = name if names[name] == 1 else f"{name}#{names[name]}"
            groups.append(self._group(name, atoms, slot, slots, roles))
        renumber = {int(self.group_of[self.unit[atoms[0]]]): k for k, atoms in enumerate(parts)}
        lookup = np.full(int(found.max(initial=-1)) + 2, -1)
        lookup[list(renumber)] = list(renumber.values())
        self.group_of = lookup[self.group_of]
        return groups

    def _group(self, name: str, atoms: Atoms, slot: int, slots: Index, roles: list[Role]) -> ChannelGroup:
        """Numbers the channels in the order of the first producer's axis."""
        begin, end = (np.searchsorted(self.slot_of[atoms], slots, side) for side in ("left", "right"))
        parts = {s: slice(a, b) for s, a, b in zip(slots, begin, end, strict=True)}
        root = self.channel[atoms]
        order = np.concatenate([root[parts[slot]], root])
        channels, first = np.unique(order, return_index=True)
        number = np.empty(len(channels), dtype=np.int64)
        number[np.argsort(first)] = np.arange(len(channels))
        ids = number[np.searchsorted(channels, root)]
        members = []
        for s, part in parts.items():
            index = np.full(len(self.axes[s]), -1)
            index[self.position_of[atoms[part]]] = ids[part]
            members.append((self.slots[s][0].name, self.slots[s][1], index))
        units = self._units(atoms, ids, len(channels))
        reason = self.reason[self.unit[atoms]].min()
        text = self.reasons[reason] if reason < _NEVER else None
        if text is None and len(units) == 1:
            text = "can only be removed as a whole"
        return ChannelGroup(
            name=name,
            width=len(channels),
            unit=units.shape[1],
            prunable=text is None,
            reason=text,
            members=members,
            roles=[roles[s] for s in slots],
            units=units,
        )

    def _units(self, atoms: Atoms, ids: Index, width: int) -> Index:
        root = np.empty(width, dtype=np.int64)
        root[ids] = self.unit[atoms]
        _, first, inverse = np.unique(root, return_index=True, return_inverse=True)
        return np.argsort(first[inverse], kind="stable").reshape(len(first), -1)

    def _roles(self) -> tuple[list[Role], npt.NDArray[np.int64]]:
        """The role of each slot, and the number of the first statement that its channels are made there."""
        facts, count = self.facts, len(self.slots)
        first = np.full(count, _NEVER)
        for number in reversed(range(len(facts.produced))):
            first[self._slots_in(facts.produced[number])] = number
        normalised, consumed = np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        for arrays, flags in ((facts.normalised, normalised), (facts.consumed, consumed)):
            for atoms in arrays:
                flags[self._slots_in(atoms)] = True
        names = {leaf.name for leaf in self.traced.leaves}
        roles: list[Role] = []
        for s, (leaf, _) in enumerate(self.slots):
            statistics = f"{leaf.name.rpartition('.')[0]}.running_var".removeprefix(".") in names
            if first[s] < _NEVER:
                roles.append("producer")
            elif normalised[s] or (statistics and leaf.tensor.dim() == 1):
                roles.append("norm")
            else:
                roles.append("consumer" if consumed[s] else "other")
        return roles, first

    def _slots_in(self, atoms: Atoms) -> Index:
        known = self.axis_of.get(id(atoms), len(self.slots))
        if known < len(self.slots):
            return np.array([known])
        return np.unique(self.slot_of[atoms[atoms < len(self.slot_of)]])

    def _cost_model(self, groups: Sequence[ChannelGroup]) -> CostModel:
        prunable = [k for k, group in enumerate(groups) if group.prunable]
        column = np.full(len(groups) + 1, -1)
        column[prunable] = np.arange(len(prunable))
        forms = np.zeros((len(self.axes) + 1, len(prunable) + 1))
        where = column[self.group_of[self.entry_root]]
        forms[self.entry_axis[where >= 0], where[where >= 0]] = self.count[where >= 0]
        units = np.array([len(groups[k].units) for k in prunable])
        forms[:-1, -1] = [len(axis) for axis in self.axes]
        forms[:, -1] -= forms[:, :-1] @ units
        forms[-1, -1] = 1
        forms, number = np.unique(forms, axis=0, return_inverse=True)
        number = number.ravel()
        fixed = {int(f): int(row[-1]) for f, row in enumerate(forms) if not row[:-1].any()}

        def term(constant: int, axes: Sequence[Atoms]) -> tuple[int, tuple[int, ...]]:
            factors = [int(number[self.axis_of[id(axis)]]) for axis in axes]
            for factor in factors:
                constant *= fixed.get(factor, 1)
            return constant, tuple(f for f in factors if f not in fixed)

        def terms(parts: Sequence[tuple[int, tuple[Atoms, ...]]]) -> Terms:
            return Terms.collect([term(*part) for part in parts], one=int(number[-1]))

        parameters = []
        for leaf in self.traced.leaves:
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
            flop_terms=terms(self.facts.costs),
            param_terms=terms(parameters),
            activation_terms=terms(self.facts.activations),
        )

    def _feature(self, groups: Sequence[ChannelGroup], axis: Axis, length: int) -> tuple[str | None, Index]:
        """The group that most of the channels on a feature map's axis are of, and which they are."""
        nowhere: tuple[None, Index] = (None, np.full(length, -1))
        if axis is None:
            return nowhere
        number = self.group_of[self.unit[axis]]
        if not (number >= 0).any():
            return nowhere
        group = groups[int(np.bincount(number[number >= 0]).argmax())]
        channel_of: dict[int, int] = {}
        for name, d, index in group.members:
            atoms = next(leaf.axes[d] for leaf in self.traced.leaves if leaf.name == name)
            assert atoms is not None
            channel_of.update(
                zip(self.channel[atoms[index >= 0]].tolist(), index[index >= 0].tolist(), strict=True)
            )
        return group.name, np.array(
            [channel_of.get(c, -1) for c in self.channel[axis].tolist()], dtype=np.int64
        )


def _mix(a: npt.NDArray[np.int64], b: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    """A 64-bit hash of pairs (the finaliser of splitmix64), so that sums of them identify sets of pairs."""
    x = a.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + b.astype(np.uint64) * np.uint64(
        0xD1B54A32D192ED03
    )
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)))
