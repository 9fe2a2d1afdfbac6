"""Optimal Brain Surgeon on whole channels: which ones are missed the least once the others make up for them.

The other criteria ask how far the loss rises if a channel is cut off. But every pruned detector is
reconstructed by least squares, so a channel is dispensable where those that stay can imitate it. Layers that
read a group give y = W x; without some inputs, and with the others' weights reconstructed, the squared
error grows by

    tr(W_u (H⁻¹_uu)⁻¹ W_uᵀ),   H = mean of x xᵀ + ridge        (u: the inputs of one unit of the group)

(Hassibi and Stork, NIPS 1992; on structures: Kurtic et al., "ZipLM", NeurIPS 2023). The unit with the least
error is removed (of many units a 32nd at once), W and H⁻¹ are updated, and so on: backward elimination.
Errors are weighted by half of the squared gradient (Fisher information) of each output, which makes layers
comparable.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.graph import ChannelGraph, ChannelGroup
from autoprune.importance.gates import Batches
from autoprune.importance.gradients import convex_slopes, joint, score_by_gates
from autoprune.importance.readers import Reader, consumers, find_readers, inputs_of, observe
from autoprune.importance.reduce import Importance
from autoprune.modules.run_modes import loss_mode_copy
from autoprune.progress import track

COMPACT = 0.2  # matrices are cut to what remains of them when this fraction is gone
CHUNK = 32  # this fraction of the remaining units is removed between two updates, at least one


def obs(model: nn.Module, graph: ChannelGraph, batches: Batches, seed: int) -> Importance:
    """Scores every channel of every prunable group.

    A group that no convolution or linear layer reads by itself (in `nn.MultiheadAttention`, say) is scored
    by `joint`, times a factor that is the same for all such groups.

    Args:
        model: the detector; it is not changed.
        graph: its channel groups.
        batches: images and targets.
        seed: of the positions, and of what the detector samples.

    Returns:
        {group: [width]}, whose sum over the channels that go first estimates the rise of the loss.

    Raises:
        ModelError: there are no images, or the model returns no losses in training mode.
    """
    copied = loss_mode_copy(model).requires_grad_(False)
    readers = find_readers(copied, graph)
    observe(copied, readers, batches, seed)
    scores: Importance = {}
    for name, group in track(graph.prunable.items(), "importance by OBS", len(graph.prunable)):
        used = [(readers[layer], channels) for layer, channels in consumers(group) if layer in readers]
        used = [(reader, channels) for reader, channels in used if reader.samples]
        if used and not all(reader.is_finite for reader, _ in used):
            scores[name] = np.full(group.width, np.nan)  # the caller refuses it, by name
        elif used:
            order, errors = eliminate(group, used)
            scores[name] = _as_scores(group, order, errors)
    if len(scores) < len(graph.prunable):
        others = score_by_gates({"joint": joint}, model, graph, batches, seed)["joint"]
        scale = _scale(scores, others)
        scores |= {name: scale * each for name, each in others.items() if name not in scores}
    return {name: scores[name] for name in graph.prunable}


def eliminate(
    group: ChannelGroup, readers: list[tuple[Reader, NDArray[np.int64]]]
) -> tuple[list[int], NDArray[np.float64]]:
    """Removes unit after unit; returns them in that order, with the loss that each adds, [units].

    Args:
        group: the channel group.
        readers: the layers that read it, with the group's channel at each of their input channels, or -1.
    """
    states = [_State.of(group, reader, channels) for reader, channels in readers]
    alive = np.arange(len(group.units))
    order: list[int] = []
    errors: list[float] = []
    while len(alive) > 1:
        added = torch.stack([state.errors() for state in states]).sum(0)
        count = min(max(1, len(alive) // CHUNK), len(alive) - 1)
        chosen = torch.argsort(added, stable=True)[:count]
        order += alive[chosen.cpu().numpy()].tolist()
        errors += added[chosen].tolist()
        for state in states:
            state.remove(chosen)
        alive = np.delete(alive, chosen.cpu().numpy())
    order += alive.tolist()
    errors += torch.stack([state.errors() for state in states]).sum(0).tolist()
    return order, np.array(errors)


@dataclass
class _State:
    """One layer during the elimination.

    Attributes:
        inverse: H⁻¹, [D, D].
        weights: W, scaled by the Fisher information of each output, [O, D].
        inputs: where each remaining unit's inputs are in these, [units, inputs of a unit].
        removed: inputs that are gone, and not cut out of the matrices yet, [D].
    """

    inverse: Tensor
    weights: Tensor
    inputs: Tensor
    removed: Tensor

    @staticmethod
    def of(group: ChannelGroup, reader: Reader, channels: NDArray[np.int64]) -> "_State":
        scaled = reader.weights * (reader.fisher_by_row / 2).sqrt()[:, None]
        if reader.inputs is None:
            places = inputs_of(group, channels, reader.layer)
        else:
            places = np.arange(group.width)[:, None]
        inputs = torch.from_numpy(places[group.units].reshape(len(group.units), -1)).to(scaled.device)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(reader.moments()))
        return _State(inverse, scaled, inputs, torch.zeros_like(inverse[0], dtype=torch.bool))

    def errors(self) -> Tensor:
        """What the removal of each remaining unit adds, [units]."""
        blocks = self.inverse[self.inputs[:, :, None], self.inputs[:, None, :]]
        weights = self.weights[:, self.inputs].permute(1, 2, 0)
        errors: Tensor = (weights * torch.linalg.solve(blocks, weights)).sum((1, 2))
        return errors.clamp(min=0)

    def remove(self, chosen: Tensor) -> None:
        """Removes units by their places among the remaining, and has the other inputs make up for them."""
        gone = self.inputs[chosen].flatten()
        filled = torch.linalg.solve(self.inverse[gone][:, gone], self.inverse[gone])
        self.weights.addmm_(self.weights[:, gone], filled, alpha=-1)
        self.inverse.addmm_(self.inverse[:, gone], filled, alpha=-1)
        remaining = torch.ones(len(self.inputs), dtype=torch.bool, device=gone.device)
        remaining[chosen] = False
        self.inputs = self.inputs[remaining]
        self.removed[gone] = True
        if int(self.removed.sum()) > COMPACT * len(self.removed):
            stays = ~self.removed
            self.weights, self.inverse = self.weights[:, stays], self.inverse[stays][:, stays]
            self.inputs, self.removed = (stays.cumsum(0) - 1)[self.inputs], self.removed[stays]


def _as_scores(group: ChannelGroup, order: list[int], errors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scores [width] that rise in the order of removal and add up to no more than the errors do."""
    slopes = convex_slopes(np.concatenate([[0.0], np.cumsum(errors)]))
    # Where the minorant is straight its slopes are equal: a trace of the rank keeps the order.
    slopes += 1e-9 * (slopes.mean() or 1.0) * np.arange(len(slopes)) / len(slopes)
    scores = np.zeros(group.width)
    scores[group.units[order]] = slopes[:, None] / group.unit
    return scores


def _scale(scores: Importance, others: Importance) -> float:
    """What brings other scores to the size of these, in the median of the groups that have both."""
    ratios = [float(each.sum() / (others[name].sum() or 1.0)) for name, each in scores.items()]
    return float(np.median(ratios)) if ratios else 1.0
