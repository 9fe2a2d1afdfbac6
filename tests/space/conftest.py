"""Search spaces over the chain of `tests/conftest.py`, and a count of what its cost model computes."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from autoprune.cost.budget import Budget, Metric
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.resolve import resolve
from autoprune.space.space import Scores, Space


@pytest.fixture(scope="session")
def space_file() -> Callable[..., SpaceFile]:
    """Spaces with these rules, else with one for the whole chain."""

    def make(*rules: GroupRule, **changes: object) -> SpaceFile:
        groups = rules or (GroupRule(match="body.*", max_ratio=0.75),)
        return SpaceFile(**{"model": "m", "input_size": (64, 64), "groups": groups, **changes})

    return make


@pytest.fixture(scope="session")
def make_space(space_file: Callable[..., SpaceFile]) -> Callable[..., Space]:
    """Spaces in which every group of the chain has the same largest ratio."""

    def make(graph: SimpleNamespace, max_ratio: float = 0.75, **changes: object) -> Space:
        return resolve(space_file(GroupRule(match="body.*", max_ratio=max_ratio), **changes), graph)

    return make


@pytest.fixture(scope="session")
def budget_of() -> Callable[..., Budget]:
    """Budgets at a fraction of a space's dense cost."""

    def make(space: Space, fraction: float, metric: Metric = "gflops") -> Budget:
        return Budget(metric, fraction * float(space.cost(metric, space.dense)))

    return make


@pytest.fixture(scope="session")
def removed_from() -> Callable[[Space, Scores, np.ndarray], float]:
    """The surrogate from its definition: the sum of the least important scores of each group."""

    def removed(space: Space, importance: Scores, widths: np.ndarray) -> float:
        return sum(
            float(np.sort(importance[name])[: dense - width].sum())
            for name, width, dense in zip(space.names, widths, space.dense, strict=True)
        )

    return removed


class CountingCost:
    """A cost model that counts the calls for FLOPs, and the rows of widths that they are of."""

    def __init__(self, cost: Any) -> None:
        self._cost, self.calls, self.rows = cost, 0, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cost, name)

    def flops(self, widths: np.ndarray) -> np.ndarray:
        self.calls += 1
        self.rows += int(np.prod(np.shape(widths)[:-1]))
        return self._cost.flops(widths)


@pytest.fixture(scope="session")
def count_costs() -> Callable[[SimpleNamespace], CountingCost]:
    """Replaces a graph's cost model by one that counts."""

    def count(graph: SimpleNamespace) -> CountingCost:
        graph.cost = CountingCost(graph.cost)
        return graph.cost

    return count
