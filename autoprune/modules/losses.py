"""The losses of a detector in training mode; what returns anything else is refused in one line."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from autoprune.errors import ModelError

# What code that expects other arguments raises; a RuntimeError may be the device's, and can pass by itself.
_CALLED_WRONGLY = (TypeError, ValueError, AttributeError, LookupError, AssertionError)
_REMEDY = "fix the factory that model names (docs/supported-architectures.md)"


def losses_of(model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> dict[str, Tensor]:
    """Calls ``model(images, targets)``.

    Args:
        model: a detector in training mode.
        images: each float [3, height, width].
        targets: ``boxes`` and ``labels`` of each image.

    Returns:
        Its losses by name, each a float32 scalar.

    Raises:
        ModelError: it can't be called so, or does not return a dict of losses that depend on its weights.
    """
    name = type(model).__name__
    try:
        returned = model(images, targets)
    except _CALLED_WRONGLY as error:
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(
            f"{name} fails as model(images, targets) in training mode: {problem}; {_REMEDY}"
        ) from error
    if not isinstance(returned, Mapping) or not returned:
        kind = "an empty one" if isinstance(returned, Mapping) else type(returned).__name__
        raise ModelError(f"{name} must return a dict of losses in training mode, not {kind}; {_REMEDY}")
    for key, loss in returned.items():
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            kind = str(list(loss.shape)) if isinstance(loss, Tensor) else type(loss).__name__
            raise ModelError(
                f"the loss {key!r} of {name} must be a tensor of one number, not {kind}; {_REMEDY}"
            )
    losses = {str(key): loss.float().reshape(()) for key, loss in returned.items()}
    if torch.is_grad_enabled() and not any(loss.requires_grad for loss in losses.values()):
        raise ModelError(f"no loss of {name} depends on its weights, so nothing can be trained; {_REMEDY}")
    return losses
