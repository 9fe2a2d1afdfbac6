"""Integer attributes of modules that the lengths in a model's code come from: `num_heads`, `head_dim`, `c`.

Where a call does not follow the labels in a pruned model, an attribute of a module whose code made it may be
where its number comes from. It is set to what the call would need; the next run shows whether that was it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import nn

from autoprune.ops.labels import Atoms, CallKey
from autoprune.ops.shape_calls import Misfit

_DEPTH = 3  # modules on the stack whose attributes are tried


class SizeAttribute(NamedTuple):
    """An attribute that must follow the length of an axis.

    Attributes:
        module, name: which.
        value: what it is in the dense model.
        axis: the label of the axis; the attribute is ``value`` times the fraction of it that remains.
    """

    module: str
    name: str
    value: int
    axis: Atoms


class Attempts:
    """Which attribute each call that does not follow may depend on; one is tried after the other.

    Args:
        names: the name of each module, by id.

    Attributes:
        active: by call, the attribute that makes it follow, or is tried next.
    """

    def __init__(self, names: Mapping[int, str]) -> None:
        self.active: dict[CallKey, SizeAttribute] = {}
        self._names = names
        self._failed: set[tuple[tuple[Any, ...], str]] = set()  # where an attribute was not it
        self._options: dict[CallKey, list[SizeAttribute]] = {}

    @property
    def sizes(self) -> list[SizeAttribute]:
        """All attributes in use, each once."""
        return list({(size.module, size.name): size for size in self.active.values()}.values())

    def next(self, misfits: Sequence[Misfit]) -> list[Misfit]:
        """Goes on to the next attribute for each of these calls; returns the calls that have none left."""
        exhausted = []
        tried = dict(self.active)
        for misfit in misfits:
            key = misfit.key
            if key not in self._options:
                self._options[key] = self._candidates(misfit)
            if (wrong := tried.get(key)) is not None:
                self._failed.add((_place(misfit), wrong.name))
                self._postpone(wrong)
                self._options[key] = [size for size in self._options[key] if size is not wrong]
                if self.active.get(key) is wrong:
                    del self.active[key]
            if key not in self.active and self._options[key]:
                self.active[key] = self._options[key].pop(0)
            if key not in self.active:
                exhausted.append(misfit)
        return exhausted

    def _postpone(self, wrong: SizeAttribute) -> None:
        """Calls that try an attribute that was wrong for one try it last: set for them, it stays wrong.

        A call that a model makes in eval and in training mode counts as two.
        """
        for key, size in list(self.active.items()):
            if (size.module, size.name) == (wrong.module, wrong.name):
                self._options[key].append(size)
                self.active[key] = self._options[key].pop(0)

    def drop(self, modules: Sequence[nn.Module]) -> bool:
        """Gives up the attributes of these modules, which broke another call; whether there were any."""
        names = {self._names.get(id(module)) for module in modules[:_DEPTH]}
        broken = [number for number, size in self.active.items() if size.module in names]
        for number in broken:
            del self.active[number]
        return bool(broken)

    def give_up(self, size: SizeAttribute) -> None:
        """Leaves the calls that a use of an attribute was for to themselves."""
        for key in [key for key, active in self.active.items() if active is size]:
            del self.active[key]

    def shared(self) -> list[tuple[SizeAttribute, SizeAttribute]]:
        """Pairs of uses of one attribute, for axes of different labels."""
        first: dict[tuple[str, str], SizeAttribute] = {}
        pairs = [(first.setdefault((size.module, size.name), size), size) for size in self.active.values()]
        return [(one, other) for one, other in pairs if one.axis is not other.axis]

    def _candidates(self, misfit: Misfit) -> list[SizeAttribute]:
        ranked = []
        for depth, module in enumerate(misfit.modules[:_DEPTH]):
            name = self._names.get(id(module))
            for attribute, value in vars(module).items() if name is not None else ():
                if type(value) is not int or value < 2:
                    continue
                for axis, length in misfit.changed:
                    if axis is not None and value * length % len(axis) == 0 and value * length // len(axis):
                        assert name is not None
                        ranked.append(
                            (value != len(axis), depth, SizeAttribute(name, attribute, value, axis))
                        )
        place = _place(misfit)
        ordered = [size for *_, size in sorted(ranked, key=lambda entry: entry[:2])]
        return [size for size in ordered if (place, size.name) not in self._failed]


def _place(misfit: Misfit) -> tuple[Any, ...]:
    """The call in the code, whichever module of its class makes it."""
    return (type(misfit.modules[0]) if misfit.modules else None, *misfit.key[1:])
