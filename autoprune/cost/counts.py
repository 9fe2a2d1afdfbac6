"""The cost of any widths in closed form: no model has to be built to know its GFLOPs.

The length of every axis is linear in the groups' widths, the cost of an op is a constant times the
lengths of some axes. So each cost is a sum of products of linear forms.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
# Rows costed at once, so that the intermediate lengths fit the processor's cache.
_CHUNK = 256


@dataclass(frozen=True)
class Terms:
    """A sum of products: ``constants[t] * prod_k length[factors[k, t]]`` over all terms t.

    Attributes:
        constants: [T].
        factors: [K, T], indices of linear forms.
    """

    constants: Array
    factors: npt.NDArray[np.int64]

    @staticmethod
    def collect(terms: Sequence[tuple[int, tuple[int, ...]]], one: int) -> "Terms":
        """Adds up terms with the same factors; ``one`` is the index of the form that is always 1."""
        sums: dict[tuple[int, ...], int] = {}
        for constant, factors in terms:
            key = tuple(sorted(factors))
            sums[key] = sums.get(key, 0) + constant
        degree = max((len(key) for key in sums), default=1) or 1
        padded = [[*key, *[one] * (degree - len(key))] for key in sums]
        return Terms(
            np.array(list(sums.values()), dtype=np.float64),
            np.array(padded, dtype=np.int64).reshape(len(sums), degree).T.copy(),
        )

    @cached_property
    def compact(self) -> tuple[npt.NDArray[np.int64], "Terms"]:
        """The forms in use [U], and the same terms with factors as indices into these."""
        used, places = np.unique(self.factors, return_inverse=True)
        return used, Terms(self.constants, places.reshape(self.factors.shape))

    def __call__(self, lengths: Array) -> Array:
        """Sums the terms for ``lengths`` [F, n]; returns [n]."""
        product = lengths[self.factors[0]]
        for factor in self.factors[1:]:
            product *= lengths[factor]
        return np.asarray(self.constants @ product)


class Constant(NamedTuple):
    """A layer that becomes a constant, one parameter per output, where it has no inputs.

    Attributes:
        inputs: the form of the number of its inputs.
        change: parameters per output that it gains then; negative where a norm is folded into it.
        outputs: the form of the number of its outputs.
    """

    inputs: int
    change: int
    outputs: int


@dataclass(frozen=True)
class CostModel:
    """Exact costs as functions of the widths of the prunable groups.

    Attributes:
        names: the prunable groups, in order.
        dense: their dense widths, [G].
        unit: how many channels each loses at a time, [G].
        forms: [F, G + 1]; an axis' length is ``forms[f, :G] @ (widths / unit) + forms[f, G]``.
        flop_terms, param_terms, activation_terms: multiply-adds, parameters, bytes written by ops.
        constants: the layers that become constants without inputs.
    """

    names: tuple[str, ...]
    dense: npt.NDArray[np.int64]
    unit: npt.NDArray[np.int64]
    forms: Array
    flop_terms: Terms
    param_terms: Terms
    activation_terms: Terms
    constants: tuple[Constant, ...] = ()

    def flops(self, widths: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Multiply-adds of one forward pass on the traced input, for ``widths`` [..., G]; returns [...]."""
        return self._total(self.flop_terms, widths)

    def params(self, widths: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Parameters, for ``widths`` [..., G]; returns [...]."""
        counts = self._total(self.param_terms, widths)
        units = np.asarray(widths, dtype=np.float64) / self.unit
        if self.constants and not units.all():
            inputs, change, outputs = (np.array(column) for column in zip(*self.constants, strict=True))
            lengths = units @ self.forms[:, :-1].T + self.forms[:, -1]
            gained = ((lengths[..., inputs] == 0) * lengths[..., outputs]) @ change
            counts = counts + np.rint(gained).astype(np.int64)
        return counts

    def activations(self, widths: npt.ArrayLike) -> npt.NDArray[np.int64]:
        """Bytes that ops write in one forward pass, for ``widths`` [..., G]; returns [...]."""
        return self._total(self.activation_terms, widths)

    def _total(self, terms: Terms, widths: npt.ArrayLike) -> npt.NDArray[np.int64]:
        units = np.asarray(widths, dtype=np.float64) / self.unit
        rows = units.reshape(math.prod(units.shape[:-1]), len(self.names))
        total = np.empty(len(rows))
        used, terms = terms.compact
        forms = self.forms[used]
        for start in range(0, len(rows), _CHUNK):
            chunk = rows[start : start + _CHUNK]
            lengths = forms[:, :-1] @ chunk.T + forms[:, -1:]
            total[start : start + _CHUNK] = terms(lengths)
        # Doubles hold integers up to 2**53 exactly, far above any model's counts.
        return np.rint(total).astype(np.int64).reshape(units.shape[:-1])
