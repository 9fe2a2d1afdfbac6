"""Where the input's signal still flows once groups keep no channels at all.

A layer that reads an emptied group returns its bias, a constant; what only such groups are made from is dead.
All questions are answered for many sets of emptied groups at once: an integer holds one bit per set.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

from autoprune.tracing.signal_record import INPUT

Axes: TypeAlias = tuple[frozenset[str], ...]
"""The groups on each axis of a tensor that has channels of prunable groups only: emptied with all of them."""
Bits: TypeAlias = int
Emptied: TypeAlias = Mapping[str, Bits]
"""For each group the sets that have it."""


class PathRead(NamedTuple):
    """A tensor that is read: the ops that wrote to it, its axes, and the groups that have channels on any."""

    sources: tuple[int, ...]
    axes: Axes
    groups: frozenset[str]


class PathOp(NamedTuple):
    """An op.

    Attributes:
        reads: what it reads.
        outputs: the axes of each tensor that it returns.
        groups: the groups that have channels on any of these.
        prediction: the layer's name, if it is one whose channels no other layer reads.
    """

    reads: tuple[PathRead, ...]
    outputs: tuple[Axes, ...]
    groups: frozenset[str]
    prediction: str | None


@dataclass(frozen=True, eq=False)
class SignalPaths:
    """The ops between the inputs and the outputs of a model.

    Attributes:
        ops: in order of execution.
        ends: what the model returns.
    """

    ops: tuple[PathOp, ...] = ()
    ends: tuple[PathRead, ...] = ()

    def cut(self, names: Collection[str]) -> str | None:
        """What would not see the input any more without these groups; ``None`` if all still does.

        Every output of the model and every prediction layer that sees the input must go on seeing it.
        """
        lost = self.lost(dict.fromkeys(names, 1), 2)  # in the second set all groups stay
        return next((what for what, bits in lost if bits == 1), None)

    def used(self) -> set[str]:
        """The groups that carry the input's signal on to what the model returns."""
        empty = _Emptiness({}, 1)
        alive, fed = self._alive(empty), self._fed(empty)
        return {name for name, bits in alive.items() if bits and fed.get(name)}

    def lost(self, emptied: Emptied, count: int) -> list[tuple[str, Bits]]:
        """For each prediction layer and output: in which of ``count`` sets it sees nothing of the input."""
        empty = _Emptiness(emptied, count)
        signal = self._signal(empty)
        calls = Counter(op.prediction for op in self.ops)
        lost = [
            (f"{'a call of ' if calls[name] > 1 else ''}`{name}` sees", empty.all & ~bits)
            for op, bits in zip(self.ops, signal, strict=True)
            if (name := op.prediction) is not None
        ]
        ends = [empty.all & ~_arriving(end, signal, empty) for end in self.ends]
        return [*lost, *(("an output of the model depends on", bits) for bits in ends)]

    def closed(
        self, emptied: Emptied, count: int, constant: Collection[str], dead: Collection[str]
    ) -> dict[str, Bits]:
        """Adds to each set the groups that serve nothing without the others.

        Args:
            emptied: the sets.
            count: how many.
            constant: of these groups, those that hold constants only, as their layers read emptied groups.
            dead: of these groups, those that only emptied ones are made from: without them nothing changes.
        """
        result = dict(emptied)
        while True:
            empty = _Emptiness(result, count)
            alive, fed = self._alive(empty), self._fed(empty)
            before = dict(result)
            for names, needed in ((dead, alive), (constant, fed)):
                for name in names:
                    result[name] = result.get(name, 0) | (empty.some & ~needed.get(name, 0))
            if all(before.get(name, 0) == bits for name, bits in result.items()):
                return {name: bits for name, bits in result.items() if bits}

    def without_dead(self, names: Iterable[str], candidates: Collection[str]) -> list[str]:
        """``names``, and those of ``candidates`` that only they are made from."""
        return list(self.closed(dict.fromkeys(names, 1), 1, (), candidates))

    def _signal(self, empty: "_Emptiness") -> list[Bits]:
        """For each op the sets in which its result depends on the input."""
        signal: list[Bits] = []
        for op in self.ops:
            bits = 0
            for read in op.reads:
                bits |= _arriving(read, signal, empty)
            signal.append(bits)
        return signal

    def _fed(self, empty: "_Emptiness") -> dict[str, Bits]:
        """For each group the sets in which any of its channels depends on the input."""
        fed: dict[str, Bits] = {}
        for op, bits in zip(self.ops, self._signal(empty), strict=True):
            for name in op.groups:
                fed[name] = fed.get(name, 0) | bits
        return fed

    def _alive(self, empty: "_Emptiness") -> dict[str, Bits]:
        """For each group the sets in which what the model returns depends on any of its channels."""
        alive: dict[str, Bits] = {}
        useful = [0] * len(self.ops)
        for end in self.ends:
            _spread(end.sources, useful, empty.all & ~empty(end.axes))
        for number in reversed(range(len(self.ops))):
            op = self.ops[number]
            bits = useful[number]
            if op.outputs:
                gone = empty.all
                for axes in op.outputs:
                    gone &= empty(axes)
                bits &= ~gone
            else:  # a value that the model's code reads
                bits = empty.all
            for read in op.reads if bits else ():
                seen = bits & ~empty(read.axes)
                _spread(read.sources, useful, seen)
                for groups in read.groups:
                    alive[groups] = alive.get(groups, 0) | seen
        return alive


class _Emptiness:
    """In which sets tensors have no elements."""

    def __init__(self, emptied: Emptied, count: int) -> None:
        self.all: Bits = (1 << count) - 1
        self.some: Bits = 0
        for bits in emptied.values():
            self.some |= bits
        self._emptied = emptied
        self._known: dict[Axes, Bits] = {}

    def __call__(self, axes: Axes) -> Bits:
        """The sets in which all channels on any of these axes are gone."""
        if not axes:
            return 0
        known = self._known.get(axes)
        if known is None:
            known = 0
            for groups in axes:
                each = self.all
                for name in groups:
                    each &= self._emptied.get(name, 0)
                known |= each
            self._known[axes] = known
        return known


def _arriving(read: PathRead, signal: Sequence[Bits], empty: _Emptiness) -> Bits:
    bits = 0
    for source in read.sources:
        bits |= empty.all if source == INPUT else signal[source]
    return bits & ~empty(read.axes)


def _spread(sources: Iterable[int], useful: list[Bits], bits: Bits) -> None:
    for source in sources:
        if source != INPUT:
            useful[source] |= bits
