"""Gradients of the detection loss with respect to gates, one number per image and channel.

A gate m = 1 multiplies a channel wherever the network reads it. To first order, removing the channel changes
the loss by -dL/dm. Summed over everything that reads the channel, the gradient adds up coupled layers and
heads shared by several levels before anything is squared (as Group Fisher pruning does, Liu et al., ICML
2021), and is right whatever norm or frozen norm lies between the producing weight and its readers. Where only
ReLUs lie between, it equals the gate after the norms that Molchanov et al. (CVPR 2019) found best, summed
over the coupled producers. There are two ways to it:

- `_ByWeights`: dL/dm = sum over consumers of w * dL/dw (w: the slice of the weight on that input channel),
  since a layer is linear in both its input and its weight. It holds for all that the graph knows.
- `_ByInputs`: gates in the forward pass, at the inputs of the convolutions and linear layers that read a
  group. No gradient of a weight is computed, and each image of a batch has gates of its own.

The second is used where it gives what the first does, on the first image with boxes; for several images at
once where a detector's loss is the mean of those of its images, so that none depends on its neighbors.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from itertools import groupby
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from autoprune.errors import ModelError
from autoprune.graph import ChannelGraph
from autoprune.importance.reduce import Importance, add_at
from autoprune.modules.losses import losses_of
from autoprune.modules.run_modes import loss_mode_copy
from autoprune.progress import track
from autoprune.seeding import scoped

Batches: TypeAlias = Callable[[], Iterable[tuple[list[Tensor], list[dict[str, Any]]]]]
Keep: TypeAlias = Mapping[str, Sequence[int]]

PER_BOX = ("boxes", "labels", "masks", "keypoints", "area", "iscrowd")  # of torchvision's targets
SAME = 1e-4  # of a group's largest gradient; round-off is a tenth of it, what is wrong a hundred times


class _Gradients(Protocol):
    """A way to the gradients."""

    def __call__(self, images: list[Tensor], targets: list[dict[str, Any]]) -> list[Importance]:
        """dL/dm of each image, {group: [width]}; L is the loss of that image alone."""


def gate_gradients(
    model: nn.Module, graph: ChannelGraph, batches: Batches, seed: int, keep: Keep | None = None
) -> Iterator[Importance]:
    """Yields dL/dm of each image: {group: [width]}.

    Works on copies; see `loss_mode_copy`.

    Args:
        model: the detector.
        graph: its channel groups.
        batches: images and targets; those of a batch are taken at once where that is exact.
        seed: of what the detector samples.
        keep: kept channels of some groups. The gates of their other channels are 0, not 1, so that the copy
            computes what a detector pruned by ``keep`` does; the gradients say what it would gain by them.

    Raises:
        ModelError: the model returns no losses in training mode, or no parameter reads a group.
    """
    by_weights = _ByWeights(model, graph, keep or {})
    device = by_weights.device
    chosen: tuple[_Gradients, bool] | None = None
    with scoped(seed):
        for batch, annotated in track(batches(), "importance"):
            images = [image.to(device) for image in batch]
            targets = [moved(target, device) for target in annotated]
            for image, target in zip(images, targets, strict=True):
                if chosen is None and len(target.get("boxes", ())):
                    chosen = _choose(by_weights, _ByInputs.of(model, graph, keep or {}), image, target, seed)
            gradients, together = chosen or (by_weights, False)
            for places in _parts(images, together):
                yield from gradients([images[at] for at in places], [targets[at] for at in places])


def moved(target: Mapping[str, Any], device: torch.device) -> dict[str, Any]:
    """A target with its tensors on a device."""
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in target.items()}


def _parts(images: list[Tensor], together: bool) -> list[list[int]]:
    """Which images are taken at once: those that have one size, as a batch of several would pad some."""
    places = range(len(images))
    if not together:
        return [[place] for place in places]
    return [list(same) for _, same in groupby(places, key=lambda place: images[place].shape)]


def _choose(
    by_weights: "_ByWeights", by_inputs: "_ByInputs | None", image: Tensor, target: dict[str, Any], seed: int
) -> tuple[_Gradients, bool]:
    """The faster way where it is exact, and whether it is so for several images at once."""
    if by_inputs is None:
        return by_weights, False
    # A loss that divides by all boxes of a batch, or samples from all its images, is another beside this.
    empty = {key: value[:0] if key in PER_BOX else value for key, value in target.items()}

    def computed(way: _Gradients, *several: dict[str, Any]) -> list[Importance]:
        with scoped(seed):
            return way([image] * len(several), list(several))

    reference, alone = computed(by_weights, target), None
    with suppress(ModelError, RuntimeError):  # the layers are not called, or memory is short
        alone = computed(by_inputs, target)
    if alone is None or not _same(reference, alone):
        return by_weights, False
    with suppress(ModelError, RuntimeError):  # some detectors take no image without boxes
        apart = [*alone, *computed(by_inputs, empty)]
        return by_inputs, _same(apart, computed(by_inputs, target, empty))
    return by_inputs, False


def _same(first: list[Importance], second: list[Importance]) -> bool:
    """Whether gradients are equal but for round-off."""
    for one, other in zip(first, second, strict=True):
        noise = 1e-7 * max((float(np.abs(values).max()) for values in one.values()), default=0.0)
        for name, values in one.items():
            if np.abs(values - other[name]).max() > SAME * np.abs(values).max() + noise:
                return False
    return True


class _Reader(NamedTuple):
    """A weight that reads a prunable group.

    Attributes:
        tensor: its name in the state dict.
        axis: its input axis.
        group: name of the group.
        channels: group channel of each position on the axis; -1 where it is not of the group.
    """

    tensor: str
    axis: int
    group: str
    channels: NDArray[np.int64]

    def closed(self, keep: Keep) -> Tensor:
        """Positions on the axis whose gates are 0, int64."""
        kept = keep.get(self.group, self.channels)
        return torch.from_numpy(np.flatnonzero((self.channels >= 0) & ~np.isin(self.channels, kept)))


def _readers(graph: ChannelGraph, parameters: Mapping[str, nn.Parameter]) -> list[_Reader]:
    """Every parameter that reads a prunable group.

    Raises:
        ModelError: no parameter reads a group, so that its channels would all look worthless.
    """
    readers = [
        _Reader(tensor, axis, name, index)
        for name, group in graph.prunable.items()
        for (tensor, axis, index), role in zip(group.members, group.roles, strict=True)
        if role == "consumer" and tensor in parameters
    ]
    read = {reader.group for reader in readers}
    if unread := [name for name in graph.prunable if name not in read]:
        raise ModelError(
            f"no parameter reads the channels of group `{unread[0]}`, so gradients can't score it; "
            "choose --criterion l2"
        )
    return readers


class _ByWeights:
    """Gradients of the weights, times the weights; one image at a time.

    Raises:
        ModelError: see `_readers`.
    """

    def __init__(self, model: nn.Module, graph: ChannelGraph, keep: Keep) -> None:
        self.model, self.graph = loss_mode_copy(model).requires_grad_(False), graph
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        self.readers = _readers(graph, parameters)
        self.weights = [parameters[reader.tensor].requires_grad_() for reader in self.readers]
        self.whole = [weight.detach().clone() if keep else weight.detach() for weight in self.weights]
        self.device = self.weights[0].device if self.weights else torch.device("cpu")
        for reader, weight in zip(self.readers, self.weights, strict=True) if keep else ():
            with torch.no_grad():
                weight.index_fill_(reader.axis, reader.closed(keep).to(self.device), 0)

    def __call__(self, images: list[Tensor], targets: list[dict[str, Any]]) -> list[Importance]:
        """DL/dm of one image; see `_Gradients`."""
        losses = losses_of(self.model, images, targets)
        loss = torch.stack(list(losses.values())).sum()
        gradients = torch.autograd.grad(loss, self.weights, allow_unused=True)
        rows = [
            torch.zeros(weight.shape[reader.axis], device=self.device)
            if gradient is None
            else (weight * gradient).movedim(reader.axis, 0).flatten(1).sum(1)
            for reader, weight, gradient in zip(self.readers, self.whole, gradients, strict=True)
        ]
        return [_gather(self.graph, self.readers, rows)]


class _ByInputs:
    """Gates at the inputs of the layers that read the groups; any number of images of one size.

    Attributes:
        layers: by the name of each one's weight.
    """

    def __init__(
        self,
        model: nn.Module,
        graph: ChannelGraph,
        readers: list[_Reader],
        layers: dict[str, Any],
        keep: Keep,
    ) -> None:
        self.model, self.graph, self.readers, self.keep = model, graph, readers, keep
        self.layers = layers
        self.gates: dict[nn.Module, Tensor] = {}
        for layer in set(self.layers.values()):
            layer.register_forward_pre_hook(self._multiply, with_kwargs=True)

    @staticmethod
    def of(model: nn.Module, graph: ChannelGraph, keep: Keep) -> "_ByInputs | None":
        """``None`` where a group is read by anything but convolutions and linear layers."""
        copied = loss_mode_copy(model).requires_grad_(False)
        readers = _readers(graph, dict(copied.named_parameters(remove_duplicate=False)))
        modules = dict(copied.named_modules(remove_duplicate=False))
        layers: dict[str, Any] = {}
        for reader in readers:
            layer = modules.get(reader.tensor.removesuffix(".weight"))
            if layer is None or _input_axis(layer) != reader.axis:
                return None
            layers[reader.tensor] = layer
        return _ByInputs(copied, graph, readers, layers, keep)

    def __call__(self, images: list[Tensor], targets: list[dict[str, Any]]) -> list[Importance]:
        """DL/dm of each image; see `_Gradients`. The loss must be the mean of the images' losses."""
        self.gates = {}
        for reader in self.readers:
            layer = self.layers[reader.tensor]
            weight: Tensor = layer.weight
            gate = self.gates.setdefault(layer, weight.new_ones(len(images), weight.shape[reader.axis]))
            gate[:, reader.closed(self.keep).to(gate.device)] = 0
        gates = [self.gates[self.layers[reader.tensor]].requires_grad_() for reader in self.readers]
        losses = losses_of(self.model, images, targets)
        loss = torch.stack(list(losses.values())).sum() * len(images)
        gradients = torch.autograd.grad(loss, gates, allow_unused=True)
        rows = [
            torch.zeros_like(gate) if gradient is None else gradient
            for gate, gradient in zip(gates, gradients, strict=True)
        ]
        return [_gather(self.graph, self.readers, [row[at] for row in rows]) for at in range(len(images))]

    def _multiply(
        self, layer: nn.Module, args: tuple[Tensor, ...], named: dict[str, Any]
    ) -> tuple[tuple[Tensor, ...], dict[str, Any]]:
        """Multiplies what a layer reads, given by position or by name, by its gates."""
        gate, read = self.gates[layer], args[0] if args else named["input"]
        if len(gate) == 1:
            gate = gate[0]  # whatever the first axis is, such as windows or regions of the image
        elif len(read) != len(gate):
            raise ModelError(f"{type(layer).__name__} reads {len(read)} maps of {len(gate)} images")
        after = 0 if isinstance(layer, nn.Linear) else read.dim() - 2
        shape = [*gate.shape[:-1], *[1] * (read.dim() - gate.dim() - after), gate.shape[-1], *[1] * after]
        gated = read * gate.reshape(shape)
        return ((gated, *args[1:]), named) if args else (args, {**named, "input": gated})


def _input_axis(layer: nn.Module) -> int | None:
    """The axis of a layer's weight that reads its input's channels; ``None`` where it is not known."""
    if isinstance(layer, nn.Linear):
        return 1
    if isinstance(layer, nn.modules.conv._ConvNd) and layer.groups == 1:
        return 0 if layer.transposed else 1
    return None


def _gather(graph: ChannelGraph, readers: list[_Reader], rows: list[Tensor]) -> Importance:
    """Adds up what each group's readers give, each [channels read]: {group: [width]}."""
    scores = {name: np.zeros(group.width) for name, group in graph.prunable.items()}
    if not rows:
        return scores
    values = torch.cat(rows).cpu().double().numpy()  # together, so that an image takes one transfer
    start = 0
    for reader, row in zip(readers, rows, strict=True):
        part = values[start : start + len(row)]
        scores[reader.group] += add_at(reader.channels, part, len(scores[reader.group]))
        start += len(row)
    return scores
