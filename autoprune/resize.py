"""How a detector resizes its input, and the same detector at another input size."""

import copy
from collections import OrderedDict
from dataclasses import asdict, dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from torch import Tensor, nn

from autoprune.errors import ModelError

LARGEST = 65_536
"""Pixels of a side, at most; as many as `Config` takes."""


@dataclass(frozen=True)
class Resize:
    """How a detector resizes its input.

    Attributes:
        min_size: pixels of the shorter side.
        max_size: limit on the pixels of the longer side.
        fixed: (height, width) that every image is stretched to, instead of the two above.
    """

    min_size: int | None = None
    max_size: int | None = None
    fixed: tuple[int, int] | None = None

    def to_dict(self) -> dict[str, Any]:
        """What is given, for files."""
        return {name: value for name, value in asdict(self).items() if value is not None}

    @property
    def pixels(self) -> int | None:
        """The shorter side, by which people know an input size."""
        return self.min_size if self.fixed is None else min(self.fixed)


@runtime_checkable
class Resizer(Protocol):
    """A detector's own resizing, where pixels or sizes do not follow from a `Resize`."""

    def resized_size(self, size: tuple[int, int]) -> tuple[int, int]:
        """Height and width that an image of a height and width gets."""

    def resize_pixels(self, image: Tensor) -> Tensor:
        """The image, uint8 [3, h, w], at that size."""


Resizing: TypeAlias = "Resize | Resizer | None"
"""How images are resized for a detector; ``None`` keeps the stored size."""


def checked(rule: Resize) -> Resize:
    """The same rule, as a file may give it.

    Raises:
        ValueError: it does not say one size, of 1 to `LARGEST` pixels.
    """
    sides = rule.fixed or (rule.min_size, rule.max_size)
    if None in sides or (rule.fixed and (rule.min_size, rule.max_size) != (None, None)):
        raise ValueError("must hold min_size and max_size, or fixed alone")
    if not all(side is not None and 1 <= side <= LARGEST for side in sides):
        raise ValueError(f"must hold sizes of 1 to {LARGEST} pixels")
    return rule


def resize_rule(model: nn.Module) -> Resize | None:
    """Reads the detector's resizing from ``model.transform``; ``None`` where it has none."""
    transform = getattr(model, "transform", None)
    if (fixed := getattr(transform, "fixed_size", None)) is not None:
        return Resize(fixed=(int(fixed[1]), int(fixed[0])))  # torchvision stores (width, height)
    min_size, max_size = getattr(transform, "min_size", None), getattr(transform, "max_size", None)
    if min_size is None or max_size is None:
        return None
    shorter = min_size[-1] if isinstance(min_size, list | tuple) else min_size  # used in eval mode
    return Resize(int(shorter), int(max_size))


def pixel_resizing(model: nn.Module) -> Resizing:
    """How images become what the detector sees: its transform, where that tells it, or else its rule."""
    transform = getattr(model, "transform", None)
    return transform if isinstance(transform, Resizer) else resize_rule(model)


def resized(model: nn.Module, rule: Resize | None) -> nn.Module:
    """The same detector at another input size. All but ``transform`` is shared with it, so it costs nothing.

    Args:
        model: a detector with a rule of the same kind; not changed.
        rule: how the result resizes; ``None`` returns ``model`` itself.

    Raises:
        ModelError: the detector has no rule of this kind, or it can't be set.
    """
    if rule is None or (own := resize_rule(model)) == rule:
        return model
    if own is None or (own.fixed is None) != (rule.fixed is None):
        raise ModelError(f"{type(model).__name__} can't run at another input size: {_needed(rule)}")
    same = copy.copy(model)
    same._modules = OrderedDict(model._modules)  # so that the detector keeps its own transform
    untyped: Any = same
    try:
        untyped.transform = copy.copy(untyped.transform)
        _set(untyped.transform, rule, own)
    except AttributeError as error:  # a property without a setter, a frozen dataclass
        raise ModelError(
            f"{type(model).__name__} can't run at another input size: {error}; {_needed(rule)}"
        ) from error
    if resize_rule(same) != rule:
        raise ModelError(f"{type(model).__name__} ignores another input size: {_needed(rule)}")
    return same


def _set(transform: Any, rule: Resize, own: Resize) -> None:
    """Sets the rule on a transform that has another one of the same kind, in place."""
    if rule.fixed is not None:
        transform.fixed_size = type(transform.fixed_size)((rule.fixed[1], rule.fixed[0]))
        return
    assert rule.min_size is not None
    assert own.min_size is not None
    sizes = transform.min_size
    if isinstance(sizes, list | tuple):  # training draws one of them
        transform.min_size = type(sizes)(round(each * rule.min_size / own.min_size) for each in sizes)
    else:
        transform.min_size = rule.min_size
    transform.max_size = rule.max_size


def _needed(rule: Resize) -> str:
    names = "`fixed_size`" if rule.fixed is not None else "`min_size` and `max_size`"
    return f"it needs a `transform` with {names} that can be set, as torchvision's detectors have"
