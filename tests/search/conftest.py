"""A channel graph made by hand: a chain of convolutions with known costs."""

from collections.abc import Callable, Sequence
from types import SimpleNamespace

import numpy as np
import pytest


class ChainCost:
    """flops = sum of k_i * w_i * w_(i+1) along a chain that begins at 3 channels and ends at `outputs`."""

    def __init__(
        self, names: Sequence[str], dense: Sequence[int], per_pair: Sequence[int], outputs: int
    ) -> None:
        self.names = tuple(names)
        self.dense = np.array(dense, dtype=np.int64)
        self.per_pair = np.array(per_pair, dtype=np.int64)
        self.outputs = outputs

    def _pairs(self, widths: np.ndarray) -> np.ndarray:
        widths = np.asarray(widths, dtype=np.int64)
        first, last = np.full((*widths.shape[:-1], 1), 3), np.full((*widths.shape[:-1], 1), self.outputs)
        chain = np.concatenate([first, widths, last], axis=-1)
        return chain[..., :-1] * chain[..., 1:]

    def flops(self, widths: np.ndarray) -> np.ndarray:
        return (self._pairs(widths) * self.per_pair).sum(-1)

    def params(self, widths: np.ndarray) -> np.ndarray:
        return (self._pairs(widths) * 9).sum(-1)


def make_chain(
    dense: Sequence[int] = (64, 64, 128, 256),
    units: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    producers: Sequence[Sequence[str]] | None = None,
    outputs: int = 10,
) -> SimpleNamespace:
    names = list(names or (f"body.layer{i}.conv" for i in range(len(dense))))
    units = units or [1] * len(dense)
    producers = producers or [[name] for name in names]
    groups = {}
    for name, width, unit, layers in zip(names, dense, units, producers, strict=True):
        groups[name] = SimpleNamespace(
            name=name,
            width=width,
            unit=unit,
            units=np.arange(width).reshape(-1, unit),
            prunable=True,
            reason=None,
            members=[(f"{layer}.weight", 0, np.arange(width)) for layer in layers],
            roles=["producer"] * len(layers),
        )
    prunable = dict(groups)
    groups["head.out"] = SimpleNamespace(
        name="head.out",
        width=outputs,
        unit=1,
        units=np.arange(outputs)[:, None],
        prunable=False,
        reason="has no consumer: it is an output of the model",
        members=[],
        roles=[],
    )
    per_pair = [100_000 * (i + 1) for i in range(len(dense) + 1)]
    return SimpleNamespace(groups=groups, prunable=prunable, cost=ChainCost(names, dense, per_pair, outputs))


@pytest.fixture(scope="session")
def chain() -> Callable[..., SimpleNamespace]:
    return make_chain


@pytest.fixture(scope="session")
def importance_of() -> Callable[..., dict[str, np.ndarray]]:
    """Positive scores with a heavy tail, different in each group."""

    def make(graph: SimpleNamespace, seed: int = 0) -> dict[str, np.ndarray]:
        random = np.random.default_rng(seed)
        return {
            name: random.exponential(random.uniform(0.1, 3), group.width)
            for name, group in graph.prunable.items()
        }

    return make
