"""Optimal Brain Surgeon on whole channels: which ones are missed the least once the others make up for them.

The other criteria ask what the loss loses if a channel is cut off. But every pruned detector is reconstructed
by least squares, so a channel is dispensable where those that stay can imitate it. Layers that read a group
give y = W x; without some inputs, and with the others' weights reconstructed, the squared error grows by

    tr(W_u (H⁻¹_uu)⁻¹ W_uᵀ),   H = mean of x xᵀ + ridge        (u: the inputs of one unit of the group)

(Hassibi and Stork, NIPS 1992; on structures: Kurtic et al., "ZipLM", NeurIPS 2023). The unit with the least
error is removed, W and H⁻¹ are updated, and so on: backward elimination. Errors are weighted by what the loss
feels of each output, its squared gradient (Fisher information), which makes layers comparable.
"""

import math
from collections.abc import Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph, ChannelGroup
from autoprune.graph.losses import losses_of
from autoprune.graph.run_modes import loss_mode_copy
from autoprune.importance.gradients import Batches, convex_slopes, joint, score_by_gates
from autoprune.importance.reduce import Importance
from autoprune.progress import track
from autoprune.seeding import scoped
from autoprune.seeding import seed as derive
from autoprune.training.feature_sampling import FeatureSampler, SampledPositions, object_areas
from autoprune.training.least_squares import Layer, as_maps, is_linear_in_patches, patches

POSITIONS = 4096  # of each map of a layer, over all images
RIDGE = 1e-2  # of each input's mean square
FEW = 32  # images that are expected where their number is not known
COMPACT = 0.2  # matrices are cut to what remains of them when this fraction is gone
CHUNK = 32  # this fraction of the remaining units is removed between two updates, at least one


@dataclass
class _Reader:
    """What one layer reads, and how much the loss feels of what it gives.

    Attributes:
        gram: sum over samples of x xᵀ, [D, D].
        total: sum of x, [D].
        samples: how many.
        felt: sum over images and positions of the squared gradient of each output, [O].
    """

    layer: Layer
    gram: Tensor = field(init=False)
    total: Tensor = field(init=False)
    samples: int = 0
    felt: Tensor = field(init=False)

    def __post_init__(self) -> None:
        weights = self.layer.weight.flatten(1).double()
        self.gram = weights.new_zeros(weights.shape[1], weights.shape[1])
        self.total, self.felt = weights.new_zeros(weights.shape[1]), weights.new_zeros(len(weights))

    @property
    def is_finite(self) -> bool:
        """Whether all that it read and that the loss felt is."""
        return bool(self.gram.isfinite().all() and self.felt.isfinite().all())

    def moments(self) -> Tensor:
        """H [D, D]: mean of x xᵀ with the ridge; without the means where a bias can absorb them."""
        second = self.gram / self.samples
        if self.layer.bias is not None:
            mean = self.total / self.samples
            second = second - torch.outer(mean, mean)
        scale = second.diagonal()
        return second + torch.diag(RIDGE * scale + 1e-8 * scale.mean() + 1e-30)


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
    readers = _readers(copied, graph)
    _observe(copied, readers, batches, seed)
    scores: Importance = {}
    for name, group in track(graph.prunable.items(), "importance by OBS", len(graph.prunable)):
        used = [(readers[layer], channels) for layer, channels in _consumers(group) if layer in readers]
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
    group: ChannelGroup, readers: list[tuple[_Reader, NDArray[np.int64]]]
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
        weights: W, scaled by what is felt of each output, [O, D].
        inputs: where each remaining unit's inputs are in these, [units, inputs of a unit].
        removed: inputs that are gone, and not cut out of the matrices yet, [D].
    """

    inverse: Tensor
    weights: Tensor
    inputs: Tensor
    removed: Tensor

    @staticmethod
    def of(group: ChannelGroup, reader: _Reader, channels: NDArray[np.int64]) -> "_State":
        weights = reader.layer.weight.detach().double()
        area = weights[0, 0].numel()
        scaled = weights.flatten(1) * (reader.felt / 2).sqrt()[:, None]
        place = np.full(group.width, -1)
        place[channels[channels >= 0]] = np.flatnonzero(channels >= 0)
        starts = torch.from_numpy(place[group.units]).to(weights.device) * area  # [units, unit]
        inputs = (starts[:, :, None] + torch.arange(area, device=weights.device)).flatten(1)
        inverse = torch.cholesky_inverse(torch.linalg.cholesky(reader.moments()))
        return _State(
            inverse, scaled, inputs, torch.zeros(len(inverse), dtype=torch.bool, device=inverse.device)
        )

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


def _consumers(group: ChannelGroup) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The modules whose weights read the group, and the group's channel at each of their inputs."""
    for (tensor, axis, channels), role in zip(group.members, group.roles, strict=True):
        if role == "consumer" and axis == 1 and tensor.endswith(".weight"):
            yield tensor.removesuffix(".weight"), channels


def _readers(model: nn.Module, graph: ChannelGraph) -> dict[str, _Reader]:
    """The layers that read prunable groups, and whose inputs can be sampled."""
    names = {name for group in graph.prunable.values() for name, _ in _consumers(group)}
    layers = {name: module for name, module in model.named_modules() if name in names}
    return {name: _Reader(layer) for name, layer in layers.items() if is_linear_in_patches(layer)}


def _observe(model: nn.Module, readers: Mapping[str, _Reader], batches: Batches, seed: int) -> None:
    """Runs the images through the detector, and fills in what the readers read and what the loss feels.

    Raises:
        ModelError: there are no images.
    """
    device = next(model.parameters()).device
    images = 0
    loaded = batches()
    each = max(1, POSITIONS // max(1, len(loaded))) if isinstance(loaded, Sized) else POSITIONS // FEW
    for reader in readers.values():
        reader.layer.weight.requires_grad_()
    with scoped(seed):
        for batch, targets in track(loaded, "importance"):
            for image, target in zip(batch, targets, strict=True):
                on_device = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in target.items()}
                areas = object_areas(model, [image.to(device)], [{"boxes": torch.zeros(0, 4), **on_device}])
                sampler = FeatureSampler(*areas, derive(seed, "obs", images), device, each)
                with _watched(readers, sampler, each) as outputs:
                    losses = losses_of(model, [image.to(device)], [on_device])
                    given = [output for _, output in outputs]
                    loss = torch.stack(list(losses.values())).sum()
                    gradients = torch.autograd.grad(loss, given, allow_unused=True)
                for (reader, _), gradient in zip(outputs, gradients, strict=True):
                    if gradient is not None:
                        reader.felt += as_maps(reader.layer, gradient).double().square().sum((0, 1, 2))
                images += 1
    if not images:
        raise ModelError("criterion obs needs at least one image; raise importance_images")
    for reader in readers.values():
        reader.felt /= images


def _anywhere(shape: tuple[int, ...], count: int, device: torch.device) -> SampledPositions:
    """Positions of maps that are not of the image, such as those of its regions."""
    total = math.prod(shape)
    chosen = torch.randperm(total)[:count]
    return SampledPositions(*(place.to(device) for place in torch.unravel_index(chosen, shape)))


@contextmanager
def _watched(
    readers: Mapping[str, _Reader], sampler: FeatureSampler, count: int
) -> Iterator[list[tuple[_Reader, Tensor]]]:
    """Adds what each reader reads to its moments; yields a list that its outputs are appended to."""
    outputs: list[tuple[_Reader, Tensor]] = []

    def record(reader: _Reader) -> Any:
        def hook(layer: Layer, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            if output.requires_grad:
                outputs.append((reader, output))
            maps = as_maps(layer, output).shape[:3]
            with torch.no_grad():
                positions = sampler(*maps[1:]) if maps[0] == 1 else _anywhere(maps, count, output.device)
                x = patches(layer, args[0], positions).double()
                reader.gram += x.T @ x
                reader.total += x.sum(0)
                reader.samples += len(x)
            return output.clone()  # what follows may change it in place, and its gradient would be another

        return hook

    handles = [reader.layer.register_forward_hook(record(reader)) for reader in readers.values()]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
