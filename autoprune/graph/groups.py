"""Channel groups, and the graph of all groups of a model with its cost."""

import operator
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from autoprune.cost.counts import CostModel
from autoprune.errors import PolicyError
from autoprune.graph.signal_paths import SignalPaths
from autoprune.modules.response_norm import ResponseForm
from autoprune.tracing.layers import Norm
from autoprune.validation import check_kind

Role: TypeAlias = Literal["producer", "consumer", "norm", "other"]
Index: TypeAlias = npt.NDArray[np.int64]


class Member(NamedTuple):
    """One axis of a parameter or buffer that holds channels of a group.

    Attributes:
        tensor: name in the state dict.
        axis: axis of the tensor.
        channels: ``channels[i]`` is the group's channel at position i of that axis, -1 where the position
            belongs to another group, [length].
    """

    tensor: str
    axis: int
    channels: Index


class Length(NamedTuple):
    """The length of an axis in terms of the channels that groups keep.

    Attributes:
        dense: the length in the dense model.
        parts: by group, the channel at each position of the axis, -1 where it is not of the group.
    """

    dense: int
    parts: tuple[tuple[str, Index], ...]

    def kept(self, keep: Mapping[str, Sequence[int] | Index]) -> int:
        """The length once the groups keep these channels; those not named keep all."""
        parts = ((index, keep[name]) for name, index in self.parts if name in keep)
        gone = [(index >= 0) & ~np.isin(index, kept) for index, kept in parts]
        return self.dense - sum(int(np.count_nonzero(flags)) for flags in gone)


class SizeRule(NamedTuple):
    """An integer attribute of a module that follows the length of an axis.

    Attributes:
        module, name: which.
        value: what it is in the dense model.
        length: of the axis; the attribute is ``value`` times the fraction of it that remains.
    """

    module: str
    name: str
    value: int
    length: Length


class ScaleRule(NamedTuple):
    """Rows of weights that make the queries of an attention which divides by the square root of its width.

    Attributes:
        length: the width; the rows are multiplied by the square root of the fraction of it that remains.
        rows: by name of a tensor and axis, the positions.
    """

    length: Length
    rows: tuple[tuple[str, int, Index], ...]


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """All parameter and buffer axes that lose the same channels together.

    Attributes:
        name: the module that makes the channels first.
        width: number of channels.
        unit: how many of them can only be removed together.
        prunable: whether any can be removed.
        reason: why not.
        members: every axis that holds the channels, as (tensor, axis, channels).
        roles: for each member, what the tensor does with the channels.
        units: the channels of each unit, [width / unit, unit].
        can_empty: whether all can be removed, as another path carries the signal.
        empty_reason: why not.
    """

    name: str
    width: int
    unit: int
    prunable: bool
    reason: str | None
    members: list[Member] = field(repr=False)
    roles: list[Role] = field(repr=False)
    units: Index = field(repr=False)
    can_empty: bool = False
    empty_reason: str | None = None


@dataclass(frozen=True, eq=False)
class ChannelGraph:
    """The channel groups of a model and the cost of every choice of widths.

    Attributes:
        groups: all groups by name, in order of execution; frozen ones say why.
        cost: the cost model over the prunable groups.
        features: for each direct child of the model, and each module that its attribute ``features`` names,
            the group and the channel index of every position on the channel axis of each 4-D tensor that it
            returns.
        shapes: dense shape of every labeled parameter and buffer.
        paths: where the input's signal flows, which decides what can be emptied.
        norms: by layer, the norm that alone reads its output.
        responses: the global response norms, whose mean stays that over all dense channels.
        scales: weights that make up for the scale of attentions.
        sizes: attributes of modules, other than torch's own layers', that `prune` sets.
        head: the smallest module that gets feature maps and holds all prediction layers, those whose outputs
            no layer reads; empty where none does.
        head_inputs: as in ``features``, of the 4-D tensors that the head gets.
    """

    groups: dict[str, ChannelGroup]
    cost: CostModel
    features: dict[str, list[tuple[str | None, Index]]]
    shapes: dict[str, tuple[int, ...]]
    paths: SignalPaths = field(default_factory=SignalPaths, repr=False)
    norms: Mapping[str, Norm] = field(default_factory=dict, repr=False)
    responses: Mapping[str, ResponseForm] = field(default_factory=dict, repr=False)
    scales: tuple[ScaleRule, ...] = ()
    sizes: tuple[SizeRule, ...] = ()
    head: str = ""
    head_inputs: list[tuple[str | None, Index]] = field(default_factory=list, repr=False)

    @cached_property
    def prunable(self) -> dict[str, ChannelGroup]:
        """The groups that can lose channels."""
        return {name: group for name, group in self.groups.items() if group.prunable}

    @cached_property
    def emptiable(self) -> tuple[str, ...]:
        """The groups that can keep no channels, though maybe not all at once; see `check_emptied`."""
        return tuple(name for name, group in self.groups.items() if group.can_empty)

    def gflops(self, widths: Mapping[str, int] | None = None) -> float:
        """GFLOPs of one forward pass on the traced input.

        Args:
            widths: channels kept by group name; groups not named keep all.

        Raises:
            PolicyError: a group is unknown or frozen, or can't have that width.
        """
        return float(self.cost.flops(self.vector(widths))) / 1e9

    def mparams(self, widths: Mapping[str, int] | None = None) -> float:
        """Millions of parameters; arguments and errors as for `gflops`."""
        return float(self.cost.params(self.vector(widths))) / 1e6

    def vector(self, widths: Mapping[str, int] | None) -> npt.NDArray[np.int64]:
        """Widths by name as the cost model takes them, [G]; all that `closed` adds to emptied groups is 0.

        Raises:
            PolicyError: a group is unknown or frozen, or can't have that width.
        """
        result = self.cost.dense.copy()
        if widths is None:
            return result
        check_kind("widths", widths, Mapping, "a dict of channels kept by group name", PolicyError)
        for name, width in widths.items():
            group = find_group(self.groups, name)
            width = _whole_number(name, width)
            if width == group.width:
                continue
            check_prunable(group)
            if not 0 <= width < group.width or width % group.unit:
                step = f", in units of {group.unit}" if group.unit > 1 else ""
                raise PolicyError(f"group `{name}` can't keep {width} channels: it has {group.width}{step}")
            result[self.cost.names.index(name)] = width
        for name in self.closed([name for name, width in widths.items() if int(width) == 0]):
            result[self.cost.names.index(name)] = 0
        return result

    def closed(self, emptied: Sequence[str]) -> list[str]:
        """Groups that keep no channels, with those that only they are made from, which serve nothing then.

        Raises:
            PolicyError: one of them can't be emptied, or they can't be emptied together.
        """
        if not emptied:
            return []
        check_emptied(self, emptied)
        return self.paths.without_dead(emptied, self.emptiable)


def _whole_number(name: str, width: Any) -> int:
    """A width, of whatever kind: a number of Python or numpy, or a tensor."""
    try:
        if "bool" not in str(getattr(width, "dtype", type(width))):  # a tensor's index() takes True as 1
            return operator.index(width)
    except (TypeError, ValueError, RuntimeError):  # no number, or a tensor of several
        pass
    shown = " ".join(reprlib.repr(width).split())
    raise PolicyError(f"group `{name}`: a width is a whole number, not {shown}")


def kept_positions(group: str | None, index: Index, keep: Mapping[str, Sequence[int]]) -> Index:
    """Positions on an axis of channels that remain after pruning, rising.

    Args:
        group: the group that the axis belongs to, if any.
        index: channel of each position, -1 where it is of no group or of another one, [length].
        keep: kept channels by group name; groups not named keep all.
    """
    if group is None or group not in keep:
        return np.arange(len(index))
    return np.flatnonzero((index < 0) | np.isin(index, np.asarray(keep[group])))


def find_group(groups: Mapping[str, ChannelGroup], name: str) -> ChannelGroup:
    """Looks up a group by name.

    Raises:
        PolicyError: no group has that name.
    """
    if name not in groups:
        raise PolicyError(f"no channel group is named `{name}`; `autoprune inspect` lists them")
    return groups[name]


def check_prunable(group: ChannelGroup) -> None:
    """Checks that channels can be removed from a group.

    Raises:
        PolicyError: the group is frozen.
    """
    if not group.prunable:
        raise PolicyError(f"group `{group.name}` can't lose channels: it {group.reason}")


def check_emptied(graph: ChannelGraph, names: Sequence[str]) -> None:
    """Checks that groups can keep no channels at once.

    Raises:
        PolicyError: one of them can't, or together they leave no path for the signal; says which, and why.
    """
    for name in names:
        group = find_group(graph.groups, name)
        if not group.can_empty:
            reason = group.empty_reason or group.reason
            raise PolicyError(f"group `{name}` can't be emptied: it {reason}; keep {group.unit} at least")
    cut = graph.paths.cut(names)
    if cut is None:
        return
    needed = list(names)
    for name in names:
        fewer = [other for other in needed if other != name]
        if graph.paths.cut(fewer) is not None:
            needed = fewer
    listed = ", ".join(f"`{name}`" for name in needed)
    raise PolicyError(
        f"groups {listed} can't all be emptied: together they carry all that {graph.paths.cut(needed)}; "
        "keep channels of one of them"
    )
