"""Builds pruned copies of a model, and masked ones as their reference."""

import copy
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from autoprune.errors import ModelError, PolicyError, is_out_of_memory
from autoprune.graph.emptied import without_empty
from autoprune.graph.groups import ChannelGraph, ChannelGroup, Index, check_prunable, find_group
from autoprune.modules.module_sizes import fix_sizes
from autoprune.modules.response_norm import adapt_response
from autoprune.modules.tensor_tree import tensors_within
from autoprune.validation import check_kind


def prune(model: nn.Module, graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """Returns a copy of ``model`` without the channels that ``keep`` omits.

    Args:
        model: the model that ``graph`` was made from, or one of the same shapes.
        graph: its channel groups.
        keep: kept channels by group name; groups not named keep all. With none, a layer that reads the group
            becomes its bias, and what only the group is made from goes too.

    Raises:
        PolicyError: a keep set does not fit its group, or the graph is of another model; or groups can't be
            emptied, alone or together.
        ModelError: the model can't be copied.
    """
    # deepcopy takes tensors in the memo as they are: no full weight is copied only to be sliced.
    memo, kept = sliced_tensors(_tensors(model), graph, keep)
    pruned = copied(model, memo)
    adapt(zip(model.modules(), pruned.modules(), strict=True), pruned, graph, kept)
    return pruned


def sliced_tensors(
    tensors: Mapping[str, torch.Tensor], graph: ChannelGraph, keep: Mapping[str, Sequence[int]]
) -> tuple[dict[int, torch.Tensor], dict[str, Index]]:
    """What each tensor that shrinks becomes, by its id, and the channels kept by group; as for `prune`.

    ``tensors`` are the parameters and buffers of the model by name.
    """
    kept, emptied = _checked(graph, keep)
    kept |= emptied
    rows = _rows(graph, kept)
    _check_shapes(tensors, graph)
    factors = row_factors(graph, kept)
    return {
        id(tensors[name]): _sliced(tensors[name], of_tensor, factors.get(name))
        for name, of_tensor in rows.items()
    }, kept


def row_factors(
    graph: ChannelGraph, keep: Mapping[str, Sequence[int] | Index]
) -> dict[str, tuple[int, torch.Tensor]]:
    """What `prune` multiplies weights with, so that attentions keep their scale.

    Returns:
        By tensor, an axis and a factor for each of its dense positions, [length].
    """
    factors: dict[str, tuple[int, torch.Tensor]] = {}
    for length, rows in graph.scales:
        kept = length.kept(keep)
        for name, axis, positions in rows if 0 < kept < length.dense else ():
            if name not in factors:
                factors[name] = axis, torch.ones(graph.shapes[name][axis], dtype=torch.float64)
            factors[name][1][positions] = (kept / length.dense) ** 0.5
    return factors


def adapt(
    modules: Iterable[tuple[nn.Module, nn.Module]],
    pruned: nn.Module,
    graph: ChannelGraph,
    kept: Mapping[str, Index],
) -> None:
    """Makes the modules of a copy of a model fit its sliced tensors, in place.

    Args:
        modules: of the model and of its copy, in pairs.
        pruned: the copy.
        graph: its channel groups.
        kept: the channels that each group keeps; none where it is emptied.
    """
    for before, after in modules:
        fix_sizes(before, after)
    for name, form in graph.responses.items():
        norm = pruned.get_submodule(name)
        if getattr(norm, form.weight).numel() < form.channels:
            adapt_response(norm, form)
    for rule in graph.sizes:
        length = rule.length.kept(kept)
        if length != rule.length.dense:
            setattr(pruned.get_submodule(rule.module), rule.name, rule.value * length // rule.length.dense)
    emptied = [name for name, channels in kept.items() if not len(channels)]
    if emptied:
        without_empty(pruned, graph.norms, _norm_tensors(graph, emptied))


def mask(model: nn.Module, graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> nn.Module:
    """Returns a copy of ``model`` of full size in which the channels that ``keep`` omits are zero.

    Arguments and errors are those of `prune`; the two results compute the same.
    """
    rows = _rows(graph, _checked(graph, keep)[0])
    masked = copied(model, {})
    with torch.no_grad():
        tensors = _tensors(masked)
        _check_shapes(tensors, graph)
        for name, of_tensor in rows.items():
            tensor = tensors[name]
            for axis, kept in of_tensor.items():
                removed = torch.ones(tensor.shape[axis], dtype=torch.bool)
                removed[kept] = False
                tensor.index_fill_(axis, removed.nonzero().ravel().to(tensor.device), 0)
    return masked


def copied(model: nn.Module, tensors: Mapping[int, torch.Tensor]) -> nn.Module:
    """A deep copy in which ``tensors`` stand for those of these ids.

    Of stored activations, which deepcopy refuses, it has only the values.
    """
    memo: dict[int, Any] = dict(tensors)
    try:
        return copy.deepcopy(model, dict(memo))
    except Exception:
        for module in model.modules():
            for tensor in tensors_within(vars(module)):
                if not tensor.is_leaf:
                    memo[id(tensor)] = tensor.detach().clone()
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:
        if is_out_of_memory(error):
            raise
        cause = f"{type(error).__name__}: {error}".splitlines()[0]
        raise ModelError(
            f"{type(model).__name__} can't be copied: {cause}; copy.deepcopy(model) must work"
        ) from error


def kept_channels(group: ChannelGroup, channels: Sequence[int]) -> Index:
    """Checks a keep set and returns it sorted.

    Raises:
        PolicyError: it names a channel that does not exist or the same one twice, or splits a unit.
    """
    kept = np.sort(_numbers(group, channels))  # unsigned ones too large for int64 are refused below
    if kept.size == 0:
        return kept.astype(np.int64)
    if kept[0] < 0 or kept[-1] >= group.width:
        missing = kept[0] if kept[0] < 0 else kept[-1]
        raise PolicyError(
            f"group `{group.name}` has no channel {missing}: it has {group.width}, counted from 0"
        )
    if (kept[1:] == kept[:-1]).any():
        raise PolicyError(
            f"group `{group.name}` would keep channel {kept[:-1][kept[1:] == kept[:-1]][0]} twice"
        )
    kept = kept.astype(np.int64)
    if kept.size < group.width:
        check_prunable(group)
    inside = np.isin(group.units, kept)
    if (inside.any(axis=1) != inside.all(axis=1)).any():
        part = group.units[inside.any(axis=1) & ~inside.all(axis=1)][0]
        raise PolicyError(
            f"group `{group.name}` loses units of {group.unit} channels; keep all or none of {part.tolist()}"
        )
    return kept


def _numbers(group: ChannelGroup, channels: Any) -> npt.NDArray[Any]:
    try:
        if isinstance(channels, torch.Tensor):
            channels = channels.detach().cpu().numpy()
        elif isinstance(channels, Iterable) and not isinstance(channels, (str, bytes, np.ndarray)):
            channels = list(channels)
        numbers = np.asarray(channels)
    except (ValueError, TypeError, RuntimeError):  # of several lengths; sparse or meta tensors
        numbers = np.zeros(0, dtype=object)
    if numbers.ndim != 1 or (numbers.size and numbers.dtype.kind not in "iu") or numbers.dtype == object:
        raise PolicyError(
            f"group `{group.name}`: keep takes the numbers of channels, such as [0, 2, 5]; "
            "numpy.flatnonzero gets them from a mask"
        )
    return numbers


def kept_rows(graph: ChannelGraph, keep: Mapping[str, Sequence[int]]) -> dict[str, dict[int, torch.Tensor]]:
    """For each tensor that `prune` shrinks: the kept indices of each axis that shrinks."""
    kept, emptied = _checked(graph, keep)
    return _rows(graph, {**kept, **emptied})


def _checked(
    graph: ChannelGraph, keep: Mapping[str, Sequence[int]]
) -> tuple[dict[str, Index], dict[str, Index]]:
    """The keep sets sorted; and those, empty, of all groups that go, dead ones included.

    Raises:
        PolicyError: a keep set does not fit its group, or groups can't be emptied, alone or together.
    """
    check_kind("the graph", graph, ChannelGraph, "that of autoprune.analyze", PolicyError)
    check_kind("keep", keep, Mapping, "a dict of channels kept by group name", PolicyError)
    kept = {name: kept_channels(find_group(graph.groups, name), channels) for name, channels in keep.items()}
    emptied = graph.closed([name for name, channels in kept.items() if not channels.size])
    return kept, {name: np.zeros(0, dtype=np.int64) for name in emptied}


def _rows(graph: ChannelGraph, keep: Mapping[str, Index]) -> dict[str, dict[int, torch.Tensor]]:
    removed_at: dict[tuple[str, int], Index] = {}  # flags of positions, by tensor and axis
    for group_name, kept in keep.items():
        group = graph.groups[group_name]
        if kept.size == group.width:
            continue
        removed = np.ones(group.width + 1, dtype=bool)
        removed[kept] = False
        removed[-1] = False
        for name, axis, index in group.members:
            flags = removed[index]
            removed_at[name, axis] = removed_at[name, axis] | flags if (name, axis) in removed_at else flags
    rows: dict[str, dict[int, torch.Tensor]] = {}
    for (name, axis), flags in removed_at.items():
        rows.setdefault(name, {})[axis] = torch.from_numpy(np.flatnonzero(~flags))
    return rows


def _norm_tensors(graph: ChannelGraph, names: Iterable[str]) -> set[str]:
    """The tensors of norms that have channels of these groups."""
    groups = [graph.groups[name] for name in names]
    return {
        member.tensor
        for group in groups
        for member, role in zip(group.members, group.roles, strict=True)
        if role == "norm"
    }


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """Parameters and buffers by their first names."""
    check_kind("the model", model, nn.Module, "a torch.nn.Module", ModelError)
    return dict([*model.named_parameters(), *model.named_buffers()])


def _check_shapes(tensors: Mapping[str, torch.Tensor], graph: ChannelGraph) -> None:
    """Checks that the tensors are those that the graph was made from.

    Raises:
        PolicyError: one is missing or has another shape.
    """
    for name, shape in graph.shapes.items():
        if name not in tensors:
            raise PolicyError(f"the channel graph is of another model: this one has no tensor `{name}`")
        if tuple(tensors[name].shape) != shape:
            raise PolicyError(
                f"the channel graph is of another model: `{name}` is {list(tensors[name].shape)} here, "
                f"not {list(shape)}; analyze this model"
            )


def _sliced(
    tensor: torch.Tensor, rows: Mapping[int, torch.Tensor], factors: tuple[int, torch.Tensor] | None
) -> torch.Tensor:
    """A copy of ``tensor`` with the kept rows of each axis, each multiplied by its factor on one of them."""
    data = tensor.detach()
    if factors is not None:
        axis, factor = factors
        factor = factor.to(data.device, data.dtype).view(-1, *[1] * (data.dim() - 1 - axis))
        data = data * factor
    for axis, kept in sorted(rows.items(), key=lambda item: len(item[1]) / tensor.shape[item[0]]):
        data = data.index_select(axis, kept.to(data.device))
    if tensor.dim() in (4, 5) and not tensor.is_contiguous():
        layout = torch.channels_last if tensor.dim() == 4 else torch.channels_last_3d
        if tensor.is_contiguous(memory_format=layout):
            data = data.contiguous(memory_format=layout)
    if isinstance(tensor, nn.Parameter):
        copied = nn.Parameter(data, requires_grad=tensor.requires_grad)
        copied.__dict__.update(copy.deepcopy(tensor.__dict__))
        return copied
    return data
