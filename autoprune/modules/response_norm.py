"""Global response norm, as in ConvNeXt V2, as a layer that can lose channels.

It divides the length of each channel over space by the mean length of all channels. In a pruned model that
would be the mean of those that remain. Removed channels count as zeros, so the one here divides their sum by
the number of channels that there were: exact whatever number the code adds to the mean.
"""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from typing import NamedTuple

import torch
from torch import Tensor, nn

_TINY = 1e-6  # a length at which the number added to the mean shows
_TOLERANCE = 1e-12


class ResponseForm(NamedTuple):
    """What a library's global response norm computes.

    Attributes:
        weight, bias: names of its parameters.
        axis: the axis of channels of its 4-D inputs, 1 or -1.
        eps: what is added to the mean.
        channels: the number of channels that the mean is over.
    """

    weight: str
    bias: str
    axis: int
    eps: float
    channels: int


class ResponseNorm(nn.Module):
    """x + weight * x * g / (sum(g) / channels + eps) + bias, where g is each channel's length over space.

    Never constructed: `adapt_response` and `responses_visible` change the class of existing modules.
    """

    response_form: ResponseForm

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] or [N, H, W, C], as ``response_form`` says, to the same shape."""
        form = self.response_form
        weight, bias = getattr(self, form.weight), getattr(self, form.bias)
        return _responded(x, weight, bias, form)


def _responded(x: Tensor, weight: Tensor, bias: Tensor, form: ResponseForm) -> Tensor:
    shape, space = ((-1, 1, 1), (2, 3)) if form.axis == 1 else ((-1,), (1, 2))
    lengths: Tensor = torch.linalg.vector_norm(x, dim=space, keepdim=True)
    # Divided before the sum, which might overflow in half precision.
    mean = (lengths / form.channels).sum(form.axis, keepdim=True)
    scale: Tensor = weight.reshape(shape) * (lengths / (mean + form.eps))
    return x + x * scale + bias.reshape(shape)


def adapt_response(module: nn.Module, form: ResponseForm) -> None:
    """Makes a global response norm whose weights were sliced run with its remaining channels, in place."""
    module.__class__ = ResponseNorm
    vars(module)["response_form"] = form


@contextmanager
def responses_visible(model: nn.Module) -> Iterator[None]:
    """Runs every global response norm of ``model`` as a `ResponseNorm`, inside the block."""
    norms = [(module, type(module), form) for module in model.modules() if (form := response_form(module))]
    for module, _, form in norms:
        adapt_response(module, form)
    try:
        yield
    finally:
        for module, kind, _ in norms:
            module.__class__ = kind
            del vars(module)["response_form"]


@torch.no_grad()
def response_form(module: nn.Module) -> ResponseForm | None:
    """What the module computes, if that is a global response norm: known from small inputs to its code."""
    parameters = dict(module.named_parameters(recurse=False))
    if len(parameters) != 2 or module._buffers or module._modules or isinstance(module, ResponseNorm):
        return None
    sizes = {n for x in parameters.values() for n in (x.numel(), max(x.shape, default=0))}
    channels = max(sizes)
    if len(sizes) != 1 or channels < 2 or type(module).__module__.startswith("torch."):
        return None
    for axis, names in product((1, -1), (list(parameters), list(parameters)[::-1])):
        try:
            probe = copy.deepcopy(module).double().cpu()
            form = ResponseForm(names[0], names[1], axis, 0.0, channels)
            form = form._replace(eps=_eps(probe, form))
            if all(_computes(probe, form, scale) for scale in (1, _TINY)):
                return form
        except Exception:  # it refuses such inputs, or to be copied: another kind of layer
            continue
    return None


def _eps(probe: nn.Module, form: ResponseForm) -> float:
    """What the module adds to the mean: of equal numbers x, it makes x + x * x / (x + eps) at weight 1."""
    nn.init.ones_(getattr(probe, form.weight))
    nn.init.zeros_(getattr(probe, form.bias))
    shape = (1, form.channels, 1, 1) if form.axis == 1 else (1, 1, 1, form.channels)
    x = torch.full(shape, _TINY, dtype=torch.float64)
    added = float((x * x / (probe.forward(x) - x) - x).ravel()[0])
    return float(f"{added:.9g}") if abs(added) > _TINY * _TOLERANCE else 0.0


def _computes(probe: nn.Module, form: ResponseForm, scale: float) -> bool:
    """Whether the module computes this, for random inputs of a scale and random parameters."""
    random = torch.Generator().manual_seed(0)
    weight, bias = getattr(probe, form.weight), getattr(probe, form.bias)
    weight.copy_(torch.randn(weight.shape, generator=random))
    bias.copy_(torch.randn(bias.shape, generator=random) * scale)
    shape = (2, form.channels, 3, 5) if form.axis == 1 else (2, 3, 5, form.channels)
    x = torch.randn(shape, generator=random, dtype=torch.float64) * scale
    given, expected = probe.forward(x.clone()), _responded(x, weight, bias, form)
    if not isinstance(given, Tensor) or given.shape != expected.shape:
        return False
    return bool((given - expected).abs().max() <= _TOLERANCE * expected.abs().max())
