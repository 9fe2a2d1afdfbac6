"""Least-squares reconstruction: each layer that lost inputs is fitted to the dense layer's outputs.

He et al., "Channel Pruning for Accelerating Very Deep Neural Networks" (ICCV 2017), and ThiNet (Luo et al.,
ICCV 2017): after channels are removed, the weights of every layer that read them are reconstructed by
least squares, so that its remaining inputs give the dense layer's outputs. Here the ridge penalty pulls to
the dense weights, not to 0, with a strength chosen on held-out images; see `least_squares.fit`. Layers are
solved in the order of execution, so that a layer's inputs contain the errors of earlier reconstructions.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from autoprune import progress
from autoprune.errors import TrainingError
from autoprune.graph import ChannelGraph
from autoprune.graph.surgery import kept_rows, row_factors
from autoprune.seeding import random_subset
from autoprune.seeding import seed as derive
from autoprune.training.batches import TrainSplit
from autoprune.training.capture import hooked
from autoprune.training.feature_sampling import FeatureSampler, SampledPositions, object_areas
from autoprune.training.least_squares import (
    Layer,
    as_maps,
    extent_of,
    fit,
    layers_without_groups,
    patches,
    solvable,
)
from autoprune.training.reconstruct_constants import fit_constants, readers_of_constants

HELD_OUT = 0.2  # fraction of the images that the strength of the ridge is chosen on
# All images go through a detector at once; a RetinaNet-R50 then takes about 1 kB per pixel.
MOST_PIXELS = 2**23
LEAST_IMAGES = 2  # one to fit, one held out


class LayerErrors(NamedTuple):
    """Squared error of a layer's outputs on held-out images, as a fraction of their variance."""

    before: float
    after: float


@dataclass(frozen=True)
class Reconstruction:
    """What a `Reconstructor` returns.

    Attributes:
        model: the reconstructed detector, in eval mode.
        errors: of each layer that was solved, before and after.
        skipped: layers that lost inputs and keep their weights.
    """

    model: nn.Module
    errors: dict[str, LayerErrors]
    skipped: tuple[str, ...]


class _Call(NamedTuple):
    """One call of a layer of the dense detector.

    Attributes:
        extent: the input's shape without its channels.
        positions: the sampled positions of its output.
        outputs: its output there, [S, outputs].
    """

    extent: tuple[int, ...]
    positions: SampledPositions
    outputs: Tensor


class Reconstructor:
    """Solves the layers that lost inputs, of one pruned copy of a dense detector after the other.

    The dense detector sees the images once. Of what its layers compute, samples are kept in the device's
    memory: `feature_sampling.COUNT` positions or more of each map, 10 kB to 10 MB per layer.

    Args:
        dense: the dense detector, in eval mode on ``device``; not changed.
        graph: its channel groups.
        split: training images.
        images: how many of them to use, at most; fewer of large ones, see `MOST_PIXELS`, but two at least.
        device: where to compute; the results stay there.
        seed: decides which images and positions.

    Raises:
        TrainingError: there are fewer than two images.
    """

    @torch.no_grad()
    def __init__(
        self,
        dense: nn.Module,
        graph: ChannelGraph,
        split: TrainSplit,
        images: int,
        device: torch.device | str,
        seed: int,
    ) -> None:
        self._dense, self._graph, self._device = dense, graph, torch.device(device)
        seed = derive(seed, "reconstruction")
        chosen = random_subset(len(split), images, seed)
        if len(chosen) < LEAST_IMAGES:
            raise TrainingError("reconstruction needs two images at least; set reconstruct_images to 0")
        self._batch, targets = _load(split, chosen, self._device)
        if len(self._batch) < len(chosen):
            progress.say(
                f"reconstruction: on {len(self._batch)} of {len(chosen)} images (reconstruct_images), as at "
                f"most {MOST_PIXELS / 1e6:.1f} million pixels go through the detector at once"
            )
        sampler = FeatureSampler(*object_areas(dense, self._batch, targets), seed, self._device)
        readers = {
            tensor.removesuffix(".weight")
            for group in graph.prunable.values()
            for (tensor, _, _), role in zip(group.members, group.roles, strict=True)
            if role == "consumer"
        }
        layers = {name: layer for name, layer in layers_without_groups(dense).items() if name in readers}
        self._calls = _dense_calls(dense, layers, self._batch, sampler)

    @torch.no_grad()
    def __call__(self, pruned: nn.Module, keep: Mapping[str, Sequence[int]]) -> Reconstruction:
        """Solves weights and biases of every convolution and linear layer that lost inputs.

        What remains of layers without inputs is set to the mean of the dense outputs first (`fit_constants`),
        and the layers that read what it is added to are solved, too.
        All images go through the detector at once, without gradients. Skipped are layers with groups or with
        a forward method of their own, layers whose positions are no positions of the image (behind RoI
        pooling, where the dense detector sees other regions), layers that read their own output, and those of
        queries that are scaled as their attention lost width.

        Args:
            pruned: what `prune` made of the dense detector; not changed.
            keep: kept channels of each pruned group.

        Raises:
            TrainingError: the pruned detector's activations are not finite.
        """
        model = copy.deepcopy(pruned).to(self._device).eval()
        rows = kept_rows(self._graph, keep)
        fit_constants(model, self._dense, rows, partial(self._dense, self._batch))
        lost = _lost_inputs(model, self._dense) | readers_of_constants(model, self._graph)
        scaled = row_factors(self._graph, keep)  # their outputs are no outputs of the dense detector
        layers = {
            name: layer
            for name, layer in solvable(lost).items()
            if name in self._calls and f"{name}.weight" not in scaled
        }
        calls = {name: _kept(self._calls[name], rows.get(f"{name}.weight", {}).get(0)) for name in layers}
        held_from = len(self._batch) - max(1, round(HELD_OUT * len(self._batch)))
        errors: dict[str, LayerErrors] = {}
        for names in _plan(model, layers, calls, self._batch[:1]):
            errors |= _solve(
                {name: layers[name] for name in names}, calls, partial(model, self._batch), held_from
            )
        return Reconstruction(model, errors, tuple(name for name in lost if name not in errors))


def _load(
    split: TrainSplit, chosen: Sequence[int], device: torch.device
) -> tuple[list[Tensor], list[dict[str, Any]]]:
    """The first of the chosen images, with their targets, as many as `MOST_PIXELS` allows."""
    batch: list[Tensor] = []
    targets: list[dict[str, Any]] = []
    for index in chosen:
        images, image_targets = split.batch([index], device)
        pixels = sum(image[0].numel() for image in (*batch, *images))
        if len(batch) >= LEAST_IMAGES and pixels > MOST_PIXELS:
            break
        batch += images
        targets += image_targets
    return batch, targets


def _lost_inputs(model: nn.Module, dense: nn.Module) -> dict[str, Layer]:
    """The layers that lost inputs, by name. A layer with groups loses whole groups instead."""
    return {
        name: layer
        for name, layer in layers_without_groups(model).items()
        if layer.weight.shape[1] < cast(Layer, dense.get_submodule(name)).weight.shape[1]
    }


def _dense_calls(
    dense: nn.Module, layers: Mapping[str, Layer], batch: list[Tensor], sampler: FeatureSampler
) -> dict[str, list[_Call]]:
    """The dense layers' outputs at the sampled positions, for layers whose inputs are whole images."""
    calls: dict[str, list[_Call]] = {name: [] for name in layers}

    def record(name: str, layer: Layer, read: Tensor, output: Tensor) -> None:
        if len(output) != len(batch):
            calls.pop(name, None)
        if name in calls:
            maps = as_maps(layer, output)
            positions = sampler(maps.shape[1], maps.shape[2])
            calls[name].append(_Call(extent_of(layer, read), positions, maps[positions]))

    with hooked(layers, record, after=True):
        dense(batch)
    return {name: recorded for name, recorded in calls.items() if recorded}


def _kept(calls: Sequence[_Call], kept: Tensor | None) -> list[_Call]:
    """The calls with those outputs only that a pruned layer still has."""
    if kept is None:
        return list(calls)
    return [call._replace(outputs=call.outputs[:, kept.to(call.outputs.device)]) for call in calls]


def _plan(
    model: nn.Module, layers: Mapping[str, Layer], calls: Mapping[str, list[_Call]], image: list[Tensor]
) -> list[list[str]]:
    """Layers by the pass in which they are solved.

    A layer that is called once is solved at that moment. One that is called for several levels needs the
    inputs of all, so it is solved after a pass, and what depends on it in the next. A layer depends on such
    a one where its input requires a gradient while only the weights of these layers do.
    """
    dependent: set[str] = set()

    def note(name: str, layer: Layer, read: Tensor) -> None:
        if read.requires_grad:
            dependent.add(name)

    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(False)
    unplanned, plan = list(layers), []
    while unplanned:
        dependent.clear()
        for name, layer in layers.items():
            layer.weight.requires_grad_(name in unplanned and len(calls[name]) > 1)
        with hooked(layers, note), torch.enable_grad():
            model(image)
        ready = [name for name in unplanned if name not in dependent]
        if not ready:  # they read their own output
            break
        plan.append(ready)
        unplanned = [name for name in unplanned if name in dependent]
    model.requires_grad_(False)
    for parameter in trainable:
        parameter.requires_grad_()
    return plan


class _StopForward(Exception):  # noqa: N818
    """Ends a forward pass once all requested inputs are recorded."""


def _solve(
    layers: Mapping[str, Layer],
    calls: Mapping[str, list[_Call]],
    forward: Callable[[], Any],
    held_from: int,
) -> dict[str, LayerErrors]:
    """Solves some layers in one forward pass; returns the errors of each."""
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    missing = sum(len(calls[name]) for name in layers)
    errors: dict[str, LayerErrors] = {}

    def solve(name: str, layer: Layer) -> None:
        images = torch.cat([call.positions.image for call in calls[name]])
        outputs = torch.cat([call.outputs for call in calls[name]])
        weights, samples = layer.weight.flatten(1), torch.cat(inputs[name])
        if not samples.isfinite().all():
            raise TrainingError(f"the input of `{name}` in the pruned detector is not finite; prune less")
        fitted = fit(samples, outputs, weights, layer.bias, images >= held_from)
        layer.weight.copy_(fitted.weights.view_as(layer.weight))
        if layer.bias is not None and fitted.bias is not None:
            layer.bias.copy_(fitted.bias)
        errors[name] = LayerErrors(fitted.before, fitted.after)

    def record(name: str, layer: Layer, read: Tensor) -> None:
        nonlocal missing
        count = len(inputs[name])
        expected = calls[name][count] if count < len(calls[name]) else None
        if expected is None or extent_of(layer, read) != expected.extent:
            return
        inputs[name].append(patches(layer, read, expected.positions))
        missing -= 1
        if len(calls[name]) == 1:
            solve(name, layer)
        if not missing:
            raise _StopForward

    with suppress(_StopForward), hooked(layers, record):
        forward()
    for name, layer in layers.items():
        if 1 < len(calls[name]) == len(inputs[name]):
            solve(name, layer)
    return errors
