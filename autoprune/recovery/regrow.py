"""Regrowth: the least valuable kept channels make room for the most valuable removed ones.

Importance is measured on the dense detector, where a channel may look worthless because others do its work,
and those may have been pruned. Here every channel has a gate, open where it is kept and closed where not, and
its value is the Taylor criterion of the gates in the pruned detector, the mean over images of |dL/dm|. Single
weights are exchanged like this in sparse training (Evci et al., "Rigging the lottery", ICML 2020); here it is
whole channels, and the cost model holds the budget.

With its sign, -dL/dm is the first-order change of the loss; but exchanges by it made the detector worse. On
the demo's detector at 50% of its GFLOPs (uniform policy, 64 validation images, BatchNorm recalibration, no
training) two rounds changed mAP from 63.8 to 43.6 with the sign, and to 72.8 without.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from autoprune.graph import ChannelGraph, ChannelGroup, prune
from autoprune.graph.emptied import Constant
from autoprune.graph.surgery import kept_rows, row_factors
from autoprune.importance.gates import gate_gradients
from autoprune.seeding import random_subset
from autoprune.seeding import seed as derive
from autoprune.space.space import Space
from autoprune.task.pruning_task import PruningTask
from autoprune.task.scoring import ImageBatches
from autoprune.task.training_start import reinitialize

EXCHANGED = 0.05  # largest fraction of the kept units that is exchanged per round

Keep = dict[str, tuple[int, ...]]
Values = NDArray[np.float64]


def regrow(task: PruningTask, space: Space, keep: Mapping[str, Sequence[int]], rounds: int) -> Keep:
    """Exchanges channels of a policy for removed ones, without costing more GFLOPs.

    Args:
        task: the dense detector and its data; `importance_images` images are used in each round.
        space: its steps and smallest widths are respected.
        keep: kept channels of each pruned group.
        rounds: how often values are measured and channels exchanged.

    Returns:
        Kept channels of each pruned group. Widths stay where latency has a budget or is an objective.
    """
    config, graph = task.config, task.graph
    seed = derive(config.seed, "regrowth")
    fixed = config.budget_latency_ms is not None or "latency_ms" in config.objectives
    images = ImageBatches(task, random_subset(len(task.train), config.importance_images, seed))
    regrown = {name: tuple(kept) for name, kept in keep.items()}
    for _ in range(rounds):
        pruned = reinitialize(task, prune(task.model, graph, regrown), regrown, seed)
        gated = scatter_into_dense(pruned, task.model, graph, regrown)
        gates = list(gate_gradients(gated, graph, lambda: images, seed, regrown))
        values = {
            name: np.abs([image[name][group.units].sum(axis=1) for image in gates]).mean(axis=0)
            for name, group in graph.prunable.items()
        }
        exchanged = exchange(space, regrown, values, same_widths=fixed)
        if exchanged == regrown:
            break
        regrown = exchanged
    return regrown


@torch.no_grad()
def scatter_into_dense(
    pruned: nn.Module, dense: nn.Module, graph: ChannelGraph, keep: Mapping[str, Sequence[int]]
) -> nn.Module:
    """A copy of ``dense`` with the tensors of ``pruned`` scattered into the positions they came from.

    Where a layer without inputs and its norm became one constant, the dense norm's shift is moved, so that
    both give that constant.
    """
    rows, factors = kept_rows(graph, keep), row_factors(graph, keep)
    model = copy.deepcopy(dense)
    smaller = pruned.state_dict()
    folded = {
        name: module
        for name, module in pruned.named_modules()
        if isinstance(module, Constant) and module.stands_for != name
    }
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        shape, places = tensor.shape, rows.get(name, {})
        index = [places.get(axis, torch.arange(shape[axis])) for axis in range(tensor.dim())]
        if name not in smaller or name.removesuffix(".bias") in folded:
            continue  # of a layer without inputs or outputs, or of a norm that was folded into one
        if name in factors:  # the dense attention has another scale
            axis, factor = factors[name]
            factor = factor[index[axis]].view(-1, *[1] * (tensor.dim() - 1 - axis))
            tensor[torch.meshgrid(*index, indexing="ij")] = (smaller[name] / factor.to(smaller[name])).to(
                tensor
            )
        elif index:
            tensor[torch.meshgrid(*index, indexing="ij")] = smaller[name].to(tensor.device)
        else:
            tensor.copy_(smaller[name])
    for name, constant in folded.items():
        layer, norm = (cast(nn.Conv2d, model.get_submodule(n)) for n in (name, constant.stands_for))
        kept = rows.get(f"{name}.weight", {}).get(constant.weight_axis, slice(None))
        shift = cast(torch.Tensor, norm.bias)
        bias = torch.zeros_like(shift) if layer.bias is None else layer.bias
        given = norm.eval()(bias.view(1, -1, *[1] * constant.dims)).flatten()
        shift[kept] += constant.bias.to(shift.device) - given[kept]
    return model


def exchange(
    space: Space, keep: Mapping[str, Sequence[int]], values: Mapping[str, Values], same_widths: bool = False
) -> Keep:
    """Exchanges the least valuable kept units for the most valuable removed ones, the best exchange first.

    Within a group, one unit is exchanged for another. Between groups, one gives up a step and the other gains
    one; where the GFLOPs of the policy allow it, a group gains a step without an exchange. The best exchange
    gains the most value per unit that moves. No unit moves twice.

    Args:
        space: steps, smallest widths and costs.
        keep: kept channels of each pruned group.
        values: value of each unit, {group: [units]}.
        same_widths: exchange within groups only.

    Returns:
        Kept channels of each pruned group.
    """
    queues = [_UnitQueues.of(space.graph.groups[name], keep.get(name), values[name]) for name in space.names]
    units = np.array([space.graph.groups[name].unit for name in space.names])
    movable = space.max_ratio > 0
    widths = np.array([len(each.kept) for each in queues]) * units
    limit = float(space.cost("gflops", widths))
    moves_left = max(1, round(EXCHANGED * sum(len(each.kept) for each in queues)))
    while True:
        lower = np.where(movable & (widths > 0), (widths - 1) // space.step * space.step, widths)
        lower = np.where(lower >= space.least, lower, widths)
        down, up = (widths - lower) // units, (space.raised(widths) - widths) // units
        # Rows: the group that gives, none in the last one. Columns: the group that gains.
        gives = np.vstack([np.diag(down * units), np.zeros_like(down)])
        after = widths - gives[:, None] + np.diag(up * units)
        lost = [*(each.worth(each.kept, n) for each, n in zip(queues, down, strict=True)), 0.0]
        won = np.array([each.worth(each.removed, n) for each, n in zip(queues, up, strict=True)])
        gain = (won - np.array(lost)[:, None]) / np.maximum(np.append(down, 0)[:, None] + up, 1)
        gain[(space.cost("gflops", after) > limit) | same_widths] = -np.inf
        swaps = [each.worth(each.removed, 1) - each.worth(each.kept, 1) for each in queues]
        np.fill_diagonal(gain, np.where(movable, swaps, -np.inf) / 2)
        if moves_left <= 0:
            gain[:-1] = -np.inf
        source, target = (int(place) for place in np.unravel_index(gain.argmax(), gain.shape))
        if not gain[source, target] > 0:
            break
        into = 1 if source == target else int(up[target])
        if source < len(queues):
            out = 1 if source == target else int(down[source])
            queues[source].close(out)
            widths[source] -= out * units[source]
        queues[target].open(into)
        widths[target] += into * units[target]
        moves_left -= into
    return {
        name: each.channels
        for name, each in zip(space.names, queues, strict=True)
        if len(each.channels) < space.graph.groups[name].width
    }


@dataclass
class _UnitQueues:
    """A group's units in the order in which they would move, and those that moved.

    Attributes:
        group: the channel group.
        values: [units].
        kept: units that can be closed, the least valuable first.
        removed: units that can be opened, the most valuable first.
        opened: units that were opened.
    """

    group: ChannelGroup
    values: Values
    kept: list[int]
    removed: list[int]
    opened: list[int]

    @staticmethod
    def of(group: ChannelGroup, keep: Sequence[int] | None, values: Values) -> "_UnitQueues":
        """The queues of a policy's group; with ``keep`` ``None`` all of it is kept."""
        order = np.argsort(values, kind="stable").tolist()
        inside = np.ones(len(order), dtype=bool) if keep is None else np.isin(group.units[:, 0], keep)
        kept = [unit for unit in order if inside[unit]]
        return _UnitQueues(group, values, kept, [unit for unit in reversed(order) if not inside[unit]], [])

    def worth(self, units: list[int], count: int) -> float:
        """Value of the first ``count`` of some units; infinite, so never chosen, for none or too many."""
        if not 0 < count <= len(units) - (units is self.kept):
            return np.inf if units is self.kept else -np.inf
        return float(self.values[units[:count]].sum())

    def close(self, count: int) -> None:
        """Removes the least valuable units."""
        del self.kept[:count]

    def open(self, count: int) -> None:
        """Adds the most valuable removed units."""
        self.opened += self.removed[:count]
        del self.removed[:count]

    @property
    def channels(self) -> tuple[int, ...]:
        """The kept channels, rising."""
        return tuple(np.sort(self.group.units[self.kept + self.opened].ravel()).tolist())
