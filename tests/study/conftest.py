"""What tests of the ledger share: a plan with two warm starts, a formula to measure, what an engine does."""

import itertools
import math
from dataclasses import dataclass, field

import numpy as np

from autoprune.space.warm_start import WarmStart
from autoprune.study.ledger import Ledger

from ..conftest import ledger_settings


@dataclass
class FakePlan:
    """Two groups of `size` channels; a fraction of 1 removes all but one channel."""

    size: int = 100
    variables: tuple = ("a", "b")
    budgets: tuple = (None,)
    warm_starts: tuple = (WarmStart("uniform", 0, (0.5, 0.5)), WarmStart("greedy", 0, (0.25, 0.75)))
    identity: dict = field(default_factory=lambda: {"space": "s1"})

    def widths(self, fractions, budget):
        return {
            name: max(1, round(self.size * (1 - fraction)))
            for name, fraction in zip(self.variables, fractions, strict=True)
        }


def measure(candidate, rung=0):
    """Best at widths 80 and 30; each rung adds some accuracy."""
    a, b = candidate.widths["a"], candidate.widths["b"]
    return {"map": 0.5 + 0.1 * rung - abs(a - 80) / 200 - abs(b - 30) / 200, "gflops": (a + b) / 10}


def lucky(candidate, rung=0):
    """As `measure`, but a policy's first measurement is up to 0.3 too high; all cost the same."""
    luck = 0 if candidate.repeat else np.random.default_rng([*candidate.widths.values()]).uniform(0, 0.3)
    return {"map": measure(candidate, rung)["map"] + luck, "gflops": 1.0}


def run(ledger, stop_after=math.inf, measure=measure):
    """What an engine does; leaves the trial in flight once `stop_after` trials are finished."""
    done = 0
    while (candidate := ledger.ask()) is not None:
        if done == stop_after:
            return ledger
        for rung in itertools.count():
            if not ledger.report(candidate.number, rung, measure(candidate, rung)):
                break
        done += 1
    return ledger


def open_ledger(path, trials=14, plan=None, **settings):
    settings = ledger_settings(trials=trials, **settings)
    return Ledger(path / "study.journal", "s", plan or FakePlan(), settings)


def results(ledger):
    return [(r.origin, dict(r.widths), r.state, [dict(m) for m in r.rungs]) for r in ledger.finished()]
