"""Trials in this process, one after the other."""

from collections.abc import Callable
from typing import TypeVar

from autoprune.errors import TRIAL_ERRORS
from autoprune.study.ledger import Ledger
from autoprune.study.trials import Candidate, Evaluator

Work = TypeVar("Work")


def run(ledger: Ledger, evaluator: Evaluator[Work], finished: Callable[[int], None]) -> None:
    """Runs trials until the ledger has no more.

    Args:
        ledger: proposes trials, decides, and keeps the results.
        evaluator: does the work of a trial.
        finished: called with a trial's number after each trial.
    """
    while (candidate := ledger.ask()) is not None:
        try:
            _climb(ledger, evaluator, candidate)
        except TRIAL_ERRORS as error:
            ledger.fail(candidate.number, str(error))
        finished(candidate.number)


def _climb(ledger: Ledger, evaluator: Evaluator[Work], candidate: Candidate) -> None:
    """Takes one trial up the rungs as far as the ledger lets it."""
    state: Work | None = None
    rung = 0
    while True:
        metrics, state = evaluator.evaluate(
            candidate.widths, rung, state, candidate.repeat, candidate.rivals_at(rung)
        )
        if not ledger.report(candidate.number, rung, metrics):
            return
        rung += 1
