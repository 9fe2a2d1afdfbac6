"""The layers that read channel groups: what they read, and the Fisher information of what they give."""

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
from autoprune.importance.gates import Batches, moved
from autoprune.modules.losses import losses_of
from autoprune.progress import track
from autoprune.seeding import scoped
from autoprune.seeding import seed as derive
from autoprune.training.capture import input_of
from autoprune.training.feature_sampling import FeatureSampler, SampledPositions, object_areas
from autoprune.training.least_squares import Layer, as_maps, is_linear_in_patches, patches

POSITIONS = 4096  # of each map of a layer, over all images
RIDGE = 1e-2  # of each input's mean square
BLOCK = 1024  # samples that are added to a matrix at once
FEW = 32  # images that are expected where their number is not known
MOST_INPUTS = 5000  # of a layer whose matrix is taken whole: 200 MB


@dataclass
class Reader:
    """What one layer reads, and the Fisher information of what it gives.

    The matrix of a layer with very many inputs, such as one behind RoI pooling that reads 256 channels at 49
    positions, would take gigabytes and minutes. Of such a layer the positions are taken as samples: what
    channels have in common at a position counts, what they have in common across positions does not.

    Attributes:
        inputs: where each channel's inputs are, [D, positions], of a layer with very many; D are then the
            channels, and O the outputs times the positions.
        gram: sum over samples of x xᵀ, [D, D].
        total: sum of x, [D].
        samples: how many.
        fisher: sum over images and positions of the squared gradient of each output, [O].
    """

    layer: Layer
    inputs: NDArray[np.int64] | None = None
    gram: Tensor = field(init=False)
    total: Tensor = field(init=False)
    samples: int = 0
    fisher: Tensor = field(init=False)
    _pending: list[Tensor] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Begins with no samples."""
        weights = self.weights
        self.gram = weights.new_zeros(weights.shape[1], weights.shape[1])
        self.total = weights.new_zeros(weights.shape[1])
        self.fisher = weights.new_zeros(len(self.layer.weight))

    @property
    def weights(self) -> Tensor:
        """W, [O, D]."""
        weights = self.layer.weight.detach().flatten(1).double()
        if self.inputs is None:
            return weights
        return weights[:, self.inputs].movedim(2, 1).flatten(0, 1)

    @property
    def fisher_by_row(self) -> Tensor:
        """`fisher` of the output of each row of the weights, [rows]."""
        return self.fisher if self.inputs is None else self.fisher.repeat_interleave(self.inputs.shape[1])

    def add(self, x: Tensor) -> None:
        """Takes samples [S, D]; many at once, since each update moves the whole matrix through memory."""
        if self.inputs is not None:
            x = x[:, self.inputs].movedim(2, 1).flatten(0, 1)
        self._pending.append(x)
        self.samples += len(x)
        if sum(map(len, self._pending)) >= BLOCK:
            self.flush()

    def flush(self) -> None:
        """Adds the samples that are pending."""
        if self._pending:
            x = torch.cat(self._pending).double()
            self.gram.addmm_(x.T, x)
            self.total += x.sum(0)
            self._pending.clear()

    @property
    def is_finite(self) -> bool:
        """Whether all that it read, and its Fisher information, is."""
        return bool(self.gram.isfinite().all() and self.fisher.isfinite().all())

    def moments(self) -> Tensor:
        """H [D, D]: mean of x xᵀ with the ridge; without the means where a bias can absorb them."""
        second = self.gram / self.samples
        rounding = 1e-9 * second.diagonal()  # of inputs that hardly vary, the means leave no more than that
        if self.layer.bias is not None:
            mean = self.total / self.samples
            second = second - torch.outer(mean, mean)
        scale = second.diagonal().clamp(min=0)
        return second + torch.diag(RIDGE * scale + rounding + 1e-8 * scale.mean() + 1e-30)


def inputs_of(group: ChannelGroup, channels: NDArray[np.int64], layer: Layer) -> NDArray[np.int64]:
    """Where the inputs of each channel are in a layer's flattened weights, [width, inputs of a channel].

    Args:
        group: the channel group.
        channels: the group's channel at each position of the weight's second axis, or -1. A linear layer
            behind a flattened map reads each channel at several.
        layer: the layer.
    """
    area = layer.weight[0, 0].numel()
    order = np.argsort(channels, kind="stable")[int((channels < 0).sum()) :]
    starts = order.reshape(group.width, -1) * area
    return np.asarray((starts[:, :, None] + np.arange(area)).reshape(group.width, -1))


def consumers(group: ChannelGroup) -> Iterator[tuple[str, NDArray[np.int64]]]:
    """The modules whose weights read the group, and the group's channel at each of their inputs."""
    for (tensor, axis, channels), role in zip(group.members, group.roles, strict=True):
        if role == "consumer" and axis == 1 and tensor.endswith(".weight"):
            yield tensor.removesuffix(".weight"), channels


def find_readers(model: nn.Module, graph: ChannelGraph) -> dict[str, Reader]:
    """The layers that read prunable groups, and whose inputs can be sampled."""
    reading: dict[str, list[tuple[ChannelGroup, NDArray[np.int64]]]] = {}
    for group in graph.prunable.values():
        for name, channels in consumers(group):
            reading.setdefault(name, []).append((group, channels))
    readers = {}
    for name, layer in model.named_modules():
        groups = reading.get(name, [])
        if not groups or not is_linear_in_patches(layer) or not all(_evenly(*pair) for pair in groups):
            continue
        if layer.weight[0].numel() <= MOST_INPUTS:
            readers[name] = Reader(layer)
        elif len(groups) == 1 and (groups[0][1] >= 0).all():
            readers[name] = Reader(layer, inputs_of(*groups[0], layer))
    return readers


def _evenly(group: ChannelGroup, channels: NDArray[np.int64]) -> bool:
    """Whether a layer reads each channel of a group at as many places."""
    counts = np.bincount(channels[channels >= 0], minlength=group.width)
    return bool((counts == counts[0]).all())


def observe(model: nn.Module, readers: Mapping[str, Reader], batches: Batches, seed: int) -> None:
    """Runs the images through the detector, and fills in what the readers read, and their Fisher information.

    Raises:
        ModelError: there are no images.
    """
    device = next(model.parameters()).device
    images = 0
    loaded = batches()
    expected = getattr(loaded, "images", len(loaded) if isinstance(loaded, Sized) else FEW)
    each = max(1, POSITIONS // max(1, expected))
    for reader in readers.values():
        reader.layer.weight.requires_grad_()
    with scoped(seed):
        for batch, targets in track(loaded, "importance by OBS, its inputs"):
            for image, target in zip(batch, targets, strict=True):
                on_device = moved(target, device)
                areas = object_areas(model, [image.to(device)], [{"boxes": torch.zeros(0, 4), **on_device}])
                sampler = FeatureSampler(*areas, derive(seed, "obs", images), device, each)
                with _watched(readers, sampler, each) as outputs:
                    losses = losses_of(model, [image.to(device)], [on_device])
                    given = [output for _, output in outputs]
                    loss = torch.stack(list(losses.values())).sum()
                    gradients = torch.autograd.grad(loss, given, allow_unused=True)
                for (reader, _), gradient in zip(outputs, gradients, strict=True):
                    if gradient is not None:
                        reader.fisher += as_maps(reader.layer, gradient).double().square().sum((0, 1, 2))
                images += 1
    if not images:
        raise ModelError("criterion obs needs at least one image; raise importance_images")
    for reader in readers.values():
        reader.flush()
        reader.fisher /= images


def _anywhere(shape: tuple[int, ...], count: int, device: torch.device) -> SampledPositions:
    """Positions of maps that are not of the image, such as those of its regions."""
    total = math.prod(shape)
    chosen = torch.randperm(total)[:count]
    return SampledPositions(*(place.to(device) for place in torch.unravel_index(chosen, shape)))


@contextmanager
def _watched(
    readers: Mapping[str, Reader], sampler: FeatureSampler, count: int
) -> Iterator[list[tuple[Reader, Tensor]]]:
    """Adds what each reader reads to its moments; yields a list that its outputs are appended to."""
    outputs: list[tuple[Reader, Tensor]] = []

    def record(reader: Reader) -> Any:
        def hook(
            layer: Layer, args: tuple[Tensor, ...], named: Mapping[str, Tensor], output: Tensor
        ) -> Tensor:
            if output.requires_grad:
                outputs.append((reader, output))
            maps = as_maps(layer, output).shape[:3]
            with torch.no_grad():
                positions = sampler(*maps[1:]) if maps[0] == 1 else _anywhere(maps, count, output.device)
                reader.add(patches(layer, input_of(args, named), positions))
            return output.clone()  # what follows may change it in place, and its gradient would be another

        return hook

    handles = [
        reader.layer.register_forward_hook(record(reader), with_kwargs=True) for reader in readers.values()
    ]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()
