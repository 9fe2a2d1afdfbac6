from dataclasses import dataclass, field

import pytest

from autoprune.search.ledger import Ledger
from autoprune.search.trials import LedgerSettings, WarmStart


@dataclass
class FakePlan:
    """Two groups of 100 channels."""

    variables: tuple = ("a", "b")
    budgets: tuple = (None,)
    warm_starts: tuple = (WarmStart("uniform", 0, (0.5, 0.5)),)
    identity: dict = field(default_factory=dict)

    def widths(self, shares, budget):
        return {name: max(1, round(100 * (1 - share))) for name, share in zip("ab", shares, strict=True)}

    def keep(self, widths):
        return {name: tuple(range(width)) for name, width in widths.items()}


@pytest.fixture
def make_ledger(tmp_path):
    def make(trials=6, name="study", **settings):
        settings = LedgerSettings(trials=trials, rungs=2, **settings)
        return Ledger(tmp_path / f"{name}.journal", "s", FakePlan(), settings)

    return make


@pytest.fixture
def objective():
    """A formula for an objective; a class made here travels to Ray's workers by value."""

    class Formula:
        """Fails where group `b` keeps more than `fails_above`; counts its evaluations."""

        def __init__(self, fails_above=1000):
            self.fails_above = fails_above
            self.evaluations = 0

        def evaluate(self, keep, rung, state):
            from autoprune.errors import TrainingError

            assert rung == (state or 0), "rungs are climbed one by one, with the state of the one below"
            self.evaluations += 1
            if len(keep["b"]) > self.fails_above:
                raise TrainingError("the loss is not finite at step 3")
            value = 0.5 + 0.1 * rung - abs(len(keep["a"]) - 80) / 200
            metrics = {"map": value, "gflops": len(keep["a"]) / 10, "evaluations": self.evaluations}
            return metrics, rung + 1

    return Formula
