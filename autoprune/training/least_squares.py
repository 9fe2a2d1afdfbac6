"""Fits the weights of one layer to samples of what it reads and what it should give."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from autoprune.training.feature_sampling import SampledPositions

STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # λ over the number of samples

Layer: TypeAlias = nn.Conv2d | nn.Linear


@dataclass(frozen=True)
class Fit:
    """Fitted weights of a layer.

    Attributes:
        weights: [outputs, inputs].
        bias: [outputs]; ``None`` for a layer without.
        before: squared error of the start on the held-out samples, as a fraction of their variance.
        after: that of the weights which were fitted without those samples; ``before`` where none was better.
    """

    weights: Tensor
    bias: Tensor | None
    before: float
    after: float


def fit(inputs: Tensor, targets: Tensor, weights: Tensor, bias: Tensor | None, held_out: Tensor) -> Fit:
    """Solves ``min over W, b of Σ ‖W x + b - y‖² + λ Σ_d s_d² ‖W_d - W⁰_d‖²`` with ``s_d² = mean of x_d²``.

    λ is one of `STRENGTHS` times the number of samples, the one with the least error on the samples held out,
    and is then used on all. Where none is better than the start, the start is returned.

    Args:
        inputs: x, [samples, inputs].
        targets: y, [samples, outputs].
        weights: W⁰, [outputs, inputs].
        bias: start of b, [outputs]; ``None`` for a layer without.
        held_out: [samples], which of them λ is chosen on; some are, and some are not.
    """
    x, y, start = inputs.double(), targets.double(), weights.double()
    residuals = y - x @ start.T - (0 if bias is None else bias.double())
    scale = x.square().mean(0).sqrt()
    x = x / torch.where(scale > 0, scale, 1.0)
    before = residuals[held_out].square().sum().item()
    shift = torch.zeros_like(start[:, 0])
    if bias is not None:  # an intercept costs nothing: it absorbs the means
        means, shift = x.mean(0), residuals.mean(0)
        x, residuals = x - means, residuals - shift
    coefficients = _ridge(x, residuals, held_out)
    errors = {
        strength: (residuals[held_out] - x[held_out] @ coefficients(strength, True)).square().sum().item()
        for strength in STRENGTHS
    }
    best = min(errors, key=errors.__getitem__)
    spread = (y[held_out] - y[held_out].mean(0)).square().sum().item() or 1.0
    if not errors[best] < before:
        return Fit(weights, bias, before / spread, before / spread)
    change = coefficients(best, False)
    new_weights = (start + (change / torch.where(scale > 0, scale, 1.0)[:, None]).T).to(weights.dtype)
    new_bias = None if bias is None else (bias.double() + shift - means @ change).to(bias.dtype)
    return Fit(new_weights, new_bias, before / spread, errors[best] / spread)


def _ridge(x: Tensor, y: Tensor, held_out: Tensor) -> Callable[[float, bool], Tensor]:
    """Ridge regression of y [N, O] on x [N, D], in the smaller of D and N unknowns.

    Returns:
        A function of the penalty, in units of the number of samples, and of whether to omit the samples held
        out, that gives the coefficients [D, O].
    """
    rest = ~held_out

    def solve(gram: Tensor, right: Tensor, penalty: float) -> Tensor:
        gram = gram.clone()
        gram.diagonal().add_(penalty)
        return torch.cholesky_solve(right, torch.linalg.cholesky(gram))

    if len(x) < x.shape[1]:
        gram = x @ x.T
        gram_of_rest = gram[rest][:, rest]

        def dual(strength: float, without: bool) -> Tensor:
            if without:
                return x[rest].T @ solve(gram_of_rest, y[rest], strength * len(gram_of_rest))
            return x.T @ solve(gram, y, strength * len(x))

        return dual
    parts = {True: x[rest].T @ x[rest]}
    parts[False] = parts[True] + x[held_out].T @ x[held_out]
    right = {True: x[rest].T @ y[rest], False: x.T @ y}

    def primal(strength: float, without: bool) -> Tensor:
        return solve(parts[without], right[without], strength * (int(rest.sum()) if without else len(x)))

    return primal


def layers_without_groups(model: nn.Module) -> dict[str, Layer]:
    """The convolutions and linear layers without groups, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear) and getattr(module, "groups", 1) == 1
    }


def solvable(layers: Mapping[str, Layer]) -> dict[str, Layer]:
    """Those that are linear in what they read, with a weight that no other layer shares."""
    owners = Counter(id(layer.weight) for layer in layers.values())
    return {
        name: layer
        for name, layer in layers.items()
        if is_linear_in_patches(layer) and owners[id(layer.weight)] == 1
    }


def is_linear_in_patches(layer: nn.Module) -> bool:
    """Whether a layer's output is its weight times what `patches` gives, and a bias."""
    if isinstance(layer, nn.Linear):
        return isinstance(layer.weight, nn.Parameter) and type(layer).forward is nn.Linear.forward
    return (
        isinstance(layer, nn.Conv2d)
        and isinstance(layer.weight, nn.Parameter)
        and type(layer).forward is nn.Conv2d.forward
        and type(layer)._conv_forward is nn.Conv2d._conv_forward
        and layer.groups == 1
        and layer.padding_mode == "zeros"
        and not isinstance(layer.padding, str)
    )


def extent_of(layer: Layer, tensor: Tensor) -> tuple[int, ...]:
    """Shape of a layer's input without its channels."""
    shape = tuple(tensor.shape)
    return (shape[0], *shape[2:]) if isinstance(layer, nn.Conv2d) else shape[:-1]


def as_maps(layer: Layer, tensor: Tensor) -> Tensor:
    """A layer's input or output as [n, h, w, channels]; tokens of a linear layer as [n, t, 1, channels]."""
    if isinstance(layer, nn.Conv2d):
        return tensor.movedim(1, -1)
    return tensor.reshape(len(tensor), -1, 1, tensor.shape[-1])


def patches(layer: Layer, tensor: Tensor, positions: SampledPositions) -> Tensor:
    """What a layer reads at positions of its output, in the order of its flattened weights.

    Args:
        layer: a convolution with zero padding and one group, or a linear layer.
        tensor: its input.
        positions: of the output, S of them.

    Returns:
        [S, inputs · kernel area].
    """
    image, row, column = positions
    if isinstance(layer, nn.Linear):
        return as_maps(layer, tensor)[image, row, column]
    height, width = (int(number) for number in layer.padding)
    padded = F.pad(tensor, (width, width, height, height)).movedim(1, -1)
    rows, columns = (
        first[:, None] * stride + torch.arange(size, device=first.device) * dilation
        for first, stride, size, dilation in zip(
            (row, column), layer.stride, layer.kernel_size, layer.dilation, strict=True
        )
    )
    return padded[image[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).flatten(1)
