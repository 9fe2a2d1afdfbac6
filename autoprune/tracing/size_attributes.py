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
        for misfit in misfits:
            if misfit.key not in self._options:
                self._options[misfit.key] = self._candidates(misfit)
            given_up = self.active.pop(misfit.key, None)
            if given_up is not None:
                self._failed.add((_place(misfit), given_up.name))
            options = self._options[misfit.key]
            if options:
                self.active[misfit.key] = options.pop(0)
            else:
                exhausted.append(misfit)
        return exhausted

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
