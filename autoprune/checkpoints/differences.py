"""How the tensors of a file differ from a model's, in one line: names, shapes and kinds of numbers."""

from collections.abc import Iterable, Sequence

from torch import Tensor

from autoprune.checkpoints.prefixes import State
from autoprune.checkpoints.state_dicts import SHOWN

Pair = tuple[str, object, object]
"""A tensor's name, what it is in the file, and what it is in the model."""


def differences(state: State, expected: State) -> str:
    """How the tensors of a file differ from a model's.

    Args:
        state: of the file.
        expected: the model's own.

    Returns:
        See `listed`.
    """
    both = sorted(expected.keys() & state.keys())
    shapes = [
        (name, list(state[name].shape), list(expected[name].shape))
        for name in both
        if state[name].shape != expected[name].shape
    ]
    kinds = [
        (name, kind_of(state[name]), kind_of(expected[name]))
        for name in both
        if state[name].shape == expected[name].shape and kind_of(state[name]) != kind_of(expected[name])
    ]
    return listed(expected.keys() - state.keys(), state.keys() - expected.keys(), shapes, kinds)


def listed(
    missing: Iterable[str],
    extra: Iterable[str],
    shapes: Iterable[Pair],
    kinds: Iterable[Pair],
    others: Sequence[str] = (),
) -> str:
    """What differs, for a message.

    Args:
        missing: names that the file lacks.
        extra: names that the model has not.
        shapes: where these differ.
        kinds: of numbers, see `kind_of`, where these differ.
        others: what else is wrong, a line each.

    Returns:
        One line with the number of tensors and the first few of each kind; empty where there are none.
    """
    parts = (
        [f"{name} is missing" for name in sorted(missing)],
        [f"{name} is not in the model" for name in sorted(extra)],
        [f"{name} is {own}, the model's {wanted}" for name, own, wanted in shapes],
        [f"{name} holds {own} numbers, the model's {wanted}" for name, own, wanted in kinds],
        list(others),
    )
    shown = [
        line
        for lines in parts
        for line in [*lines[:SHOWN], *([f"{len(lines) - SHOWN} more like that"] if lines[SHOWN:] else [])]
    ]
    return f"{sum(map(len, parts))} keys differ: {'; '.join(shown)}" if shown else ""


def kind_of(tensor: Tensor) -> str:
    """Whether a tensor holds real, complex or whole numbers."""
    return "real" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "whole"
