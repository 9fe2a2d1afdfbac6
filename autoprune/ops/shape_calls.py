"""Follows the calls that give tensors a shape, in the dense model and in pruned ones.

A literal in the model's code, `view(n, 8, 32)`, is an error in a pruned copy, or gives another shape than the
labels predict. The call is noted and gets the predicted shape, so that the run goes on to the next one: one
run finds them all.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from autoprune.ops.labels import Axis, CallKey, ShapeCall

FREE = -1
"""In place of a predicted length: nothing is known of it."""
_T = torch.Tensor
_SHAPING = {_T.view, _T.reshape, torch.reshape, _T.unflatten, torch.unflatten, _T.expand}
_SPLITTING: set[Any] = {_T.split, torch.split, _T.split_with_sizes, torch.split_with_sizes}


@dataclass(frozen=True)
class Misfit:
    """A call that does not follow the labels in a pruned model.

    Attributes:
        key: which call.
        call: the same call of the dense model.
        text: torch's own error; `None` where the call returned another shape.
        changed: the axes of its results that should have lost channels, and how long they should be.
        modules: the modules whose code made the call, the innermost first.
    """

    key: CallKey
    call: ShapeCall
    text: str | None
    changed: tuple[tuple[Axis, int], ...]
    modules: tuple[nn.Module, ...] = field(repr=False)


def is_shaping(func: Any) -> bool:
    """Whether calls of the function are followed."""
    return func in _SHAPING or func in _SPLITTING


class CallKeys:
    """Numbers the calls of each function by each module: what one keeps from run to run moves no other's.

    Args:
        names: the names of modules, by id.
        before: keys of an earlier run whose count this one continues, as in training mode after eval mode.
    """

    def __init__(self, names: Mapping[int, str], before: Iterable[CallKey] = ()) -> None:
        self._names = names
        self._counts: Counter[tuple[str, Any]] = Counter(key[:2] for key in before)

    def __call__(self, func: Any) -> CallKey:
        """The key of a call that is about to run."""
        module = next(_modules_on_stack(), None)
        place = self._names.get(id(module), ""), func
        self._counts[place] += 1
        return (*place, self._counts[place])


class CorrectedShapes(TorchFunctionMode):
    """Gives the calls in a pruned model the shapes that the labels predict.

    Args:
        calls: those of the dense model.
        names: the names of the pruned model's modules, by id.
        length: predicts the length of an axis from its label and its dense length, or says `FREE`.

    Attributes:
        misfits: the calls that needed it.
    """

    def __init__(
        self,
        calls: Mapping[CallKey, ShapeCall],
        names: Mapping[int, str],
        length: Callable[[Axis, int], int],
    ) -> None:
        super().__init__()
        self.misfits: list[Misfit] = []
        self._calls, self._keys, self._length = calls, CallKeys(names), length

    def __torch_function__(  # noqa: D105
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if not is_shaping(func):
            return func(*args, **kwargs)
        key = self._keys(func)
        call = self._calls.get(key)
        try:
            out, error = func(*args, **kwargs), None
        except RuntimeError as failure:
            if call is None:
                raise
            out, error = None, failure
        if call is None:
            return out
        wanted = [tuple(self._length(axis, n) for axis, n in axes) for axes in call.outputs]
        if error is None and _fits(call, out, wanted):
            return out
        changed = tuple(
            (axis, length) for axes, shape in zip(call.outputs, wanted, strict=True)
            for (axis, n), length in zip(axes, shape, strict=True) if length not in (n, FREE)
        )  # fmt: skip
        # Without channels lost it is another call, such as a split of queries into more parts in training.
        corrected = _corrected(func, args, kwargs, wanted) if changed else None
        if corrected is None:
            if error is not None:
                raise error
            return out
        text = f"{type(error).__name__}: {str(error).splitlines()[0]}" if error is not None else None
        self.misfits.append(Misfit(key, call, text, changed, tuple(_modules_on_stack())))
        return corrected


def _fits(call: ShapeCall, out: Any, wanted: Sequence[tuple[int, ...]]) -> bool:
    """Whether the axes of channels have the lengths that the labels predict; others may depend on values."""
    got = [tuple(x.shape) for x in (out if isinstance(out, (tuple, list)) else [out])]
    if [len(shape) for shape in got] != [len(shape) for shape in wanted]:
        return False
    return all(
        axis is None or n == length or length == FREE
        for axes, shape, lengths in zip(call.outputs, got, wanted, strict=True)
        for (axis, _), n, length in zip(axes, shape, lengths, strict=True)
    )


def _corrected(
    func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], wanted: Sequence[tuple[int, ...]]
) -> Any:
    """The result of the call in the wanted shape, by the same op; `None` if that can't be."""
    x = args[0]
    try:
        if func in _SPLITTING:
            sizes = args[1] if len(args) > 1 else next(v for k, v in kwargs.items() if k != "dim")
            dim = kwargs.get("dim", args[2] if len(args) > 2 else 0)
            lengths = [shape[dim] for shape in wanted]
            return torch.split(x, lengths[0] if isinstance(sizes, int) else lengths, dim)
        shape = wanted[0]
        if func is _T.expand:
            return x.expand(shape)
        return x.reshape(shape) if func in (_T.reshape, torch.reshape) else x.view(shape)
    except RuntimeError:
        return None


def _modules_on_stack() -> Iterator[nn.Module]:
    """The modules whose methods are running, the innermost first."""
    seen: set[int] = set()
    frame = sys._getframe(2)
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, nn.Module) and id(owner) not in seen:
            seen.add(id(owner))
            yield owner
        frame = frame.f_back  # type: ignore[assignment]


def with_siblings(
    modules: Mapping[str, nn.Module], calls: Mapping[CallKey, ShapeCall], misfits: Sequence[Misfit]
) -> list[Misfit]:
    """The calls, and the same ones of other modules of their class: its code is the same in all of them."""
    known = {misfit.key for misfit in misfits}
    all_of_them = list(misfits)
    for misfit in misfits:
        changed = {id(axis) for axis, _ in misfit.changed}
        places = [[id(axis) in changed for axis, _ in axes] for axes in misfit.call.outputs]
        for name, module in modules.items():
            key = (name, *misfit.key[1:])
            if not misfit.modules or key in known or type(module) is not type(misfit.modules[0]):
                continue
            call = calls.get(key)
            if call is not None and [len(axes) for axes in call.outputs] == [len(flags) for flags in places]:
                pairs = zip(call.outputs, places, strict=True)
                axes = [pair for axes, flags in pairs for pair, flag in zip(axes, flags, strict=True) if flag]
                known.add(key)
                all_of_them.append(replace(misfit, key=key, call=call, changed=tuple(axes)))
    return all_of_them
