"""Tensors whose shape depends on the number of classes: found by building, read from weights, refused."""

from collections.abc import Mapping
from typing import NamedTuple

from torch import Tensor, nn

from autoprune.checkpoints.prefixes import State
from autoprune.config import ModelSpec
from autoprune.detectors.factories import build
from autoprune.errors import ModelError
from autoprune.progress import show

LEAST_CLASSES = 2
"""The background and one more."""


class ClassAxis(NamedTuple):
    """The axis of a tensor whose size is ``without + per_class · classes``."""

    axis: int
    per_class: int
    without: int


def class_axes(spec: ModelSpec, model: nn.Module) -> dict[str, ClassAxis]:
    """For each tensor whose shape depends on the number of classes: axis, size per class, rest."""
    with show(None):  # it was said before what `build` says
        more = build(spec.model_copy(update={"num_classes": spec.num_classes + 1})).state_dict()
    axes: dict[str, ClassAxis] = {}
    for name, tensor in model.state_dict().items():
        sizes = zip(tensor.shape, more[name].shape, strict=True) if name in more else ()
        for axis, (size, larger) in enumerate(sizes):
            if size != larger:
                axes[name] = ClassAxis(axis, larger - size, size - (larger - size) * spec.num_classes)
    return axes


def depends_on_classes(spec: ModelSpec, model: nn.Module) -> bool:
    """Whether the number of classes decides a shape: a factory may have one of its own."""
    return bool(class_axes(spec, model))


def head_classes(
    axes: Mapping[str, ClassAxis], expected: Mapping[str, Tensor], state: State, where: str
) -> dict[str, int]:
    """The number of classes that each tensor of a class head in ``state`` is for.

    Args:
        axes: of `class_axes`.
        expected: the model's own tensors.
        state: the weights.
        where: their file, for messages.

    Returns:
        One number for all, by the names of the tensors that differ from the model's in nothing else.

    Raises:
        ModelError: a tensor is for no whole number of classes, for fewer than two, or two are for different
            numbers.
    """
    classes: dict[str, int] = {}
    for name, axis in axes.items():
        if name not in state or not _alike_but(state[name], expected[name], axis.axis):
            continue
        size = state[name].shape[axis.axis]
        number, rest = divmod(size - axis.without, axis.per_class)
        if rest:
            raise ModelError(
                f"weights {where}: `{name}` has {size} rows, and here each class has {axis.per_class}, so "
                "they are for no number of classes; check model_arguments, which may set other anchors"
            )
        if number < LEAST_CLASSES:
            raise ModelError(
                f"weights {where}: `{name}` is for {number} class, and the background counts as one, too; "
                f"give weights that were trained with num_classes {number + 1} and labels from 1"
            )
        first = next(iter(classes), name)
        if classes.setdefault(name, number) != classes[first]:
            raise ModelError(
                f"weights {where}: `{first}` is for {classes[first]} classes and `{name}` for {number}; give "
                "weights that were saved together"
            )
    return classes


def _alike_but(one: Tensor, other: Tensor, axis: int) -> bool:
    """Whether two shapes differ in no other axis."""
    return one.dim() == other.dim() and all(
        one.shape[place] == other.shape[place] for place in range(one.dim()) if place != axis
    )
