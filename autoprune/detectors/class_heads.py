"""Tensors whose shape depends on the number of classes: found by building, read from weights, refused."""

from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from autoprune.checkpoints.prefixes import State
from autoprune.config import ModelSpec
from autoprune.detectors.factories import outline
from autoprune.errors import ModelError
from autoprune.progress import show

LEAST_CLASSES = 2
"""The background and one more."""


class ClassAxis(NamedTuple):
    """The axis of a tensor whose size is ``without + per_class · classes``."""

    axis: int
    per_class: int
    without: int


def class_axes(spec: ModelSpec, model: nn.Module) -> dict[str, tuple[ClassAxis, ...]]:
    """For each tensor whose shape depends on the number of classes, the axes that do."""
    with show(None):  # it was said before what `build` says
        more = outline(spec.model_copy(update={"num_classes": spec.num_classes + 1})).state_dict()
    axes: dict[str, tuple[ClassAxis, ...]] = {}
    for name, tensor in model.state_dict().items():
        sizes = zip(tensor.shape, more[name].shape, strict=True) if name in more else ()
        own = tuple(
            ClassAxis(axis, larger - size, size - (larger - size) * spec.num_classes)
            for axis, (size, larger) in enumerate(sizes)
            if size != larger
        )
        if own:
            axes[name] = own
    return axes


def depends_on_classes(spec: ModelSpec, model: nn.Module) -> bool:
    """Whether the number of classes decides a shape: a factory may have one of its own."""
    return bool(class_axes(spec, model))


def head_classes(
    axes: Mapping[str, Sequence[ClassAxis]], expected: Mapping[str, Tensor], state: State, where: str
) -> dict[str, int]:
    """The number of classes that each tensor of a class head in ``state`` is for.

    Args:
        axes: of `class_axes`.
        expected: the model's own tensors.
        state: the weights.
        where: their file, for messages.

    Returns:
        Numbers by the names of the tensors that differ from the model's in nothing else.

    Raises:
        ModelError: a tensor is for no whole number of classes, for fewer than two, or one layer for two.
    """
    classes: dict[str, int] = {}
    of_layer: dict[str, str] = {}
    for name, own in axes.items():
        if name not in state or not _alike_but(state[name], expected[name], [each.axis for each in own]):
            continue
        axis = own[0]
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
        classes[name] = number
        first = of_layer.setdefault(name.rpartition(".")[0], name)
        if classes[first] != number:
            raise _two_numbers(where, first, classes[first], name, number)
    return classes


def refuse_other_heads(
    heads: Mapping[str, int], expected: Mapping[str, Tensor], state: State, where: str, classes: int
) -> None:
    """Refuses weights whose class head would stay fresh.

    Args:
        heads: of `head_classes`.
        expected: the tensors of the model, as built with ``classes``.
        state: the weights.
        where: their file, for messages.
        classes: the number of classes, background included.

    Raises:
        ModelError: a tensor is for another number.
    """
    other = next((name for name in heads if state[name].shape != expected[name].shape), None)
    if other is None:
        return
    if (fitting := next((name for name in heads if heads[name] == classes), None)) is not None:
        raise _two_numbers(where, fitting, classes, other, heads[other])
    raise ModelError(
        f"num_classes: {where} has {heads[other]} classes with the background, not {classes}; omit "
        "--num-classes (YAML: num_classes), or give weights with that number"
    )


def _two_numbers(where: str, one: str, classes: int, other: str, others: int) -> ModelError:
    return ModelError(
        f"weights {where}: `{one}` is for {classes} classes and `{other}` for {others}; give weights that "
        "were saved together"
    )


def _alike_but(one: Tensor, other: Tensor, axes: Collection[int]) -> bool:
    """Whether two shapes differ in no other axis."""
    return one.dim() == other.dim() and all(
        one.shape[place] == other.shape[place] for place in range(one.dim()) if place not in axes
    )
