"""What the Ray engine decides without Ray: which worker has which trial, and what a lost worker means."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from autoprune.engines.watchdog import WorkerWatchdog
from autoprune.errors import AutopruneError, ResumableError, RunError
from autoprune.progress import say
from autoprune.study.ledger import Ledger
from autoprune.study.trials import Candidate

MAX_REASON_CHARACTERS = 200
MAX_FAILED_STARTS = 5  # workers in a row that die before they begin, after which the search ends


class Dispatch:
    """The ledger as Tune's searcher, scheduler and callback share it; trials go by Tune's ids here.

    Args:
        ledger: proposes trials, decides, and keeps the results.
        finished: called with a trial's number after each trial.
        changed: called when a worker begins a trial or ends a rung.
        clock: what workers are timed by, in seconds.

    Attributes:
        error: what the search has to end with; the driver's disk is full, or a worker can't load its data.
    """

    def __init__(
        self,
        ledger: Ledger,
        finished: Callable[[int], None],
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.ledger, self._finished, self._changed = ledger, finished, changed
        self._numbers: dict[str, int] = {}
        self._causes: dict[str, str] = {}
        self._began: set[str] = set()
        self._failed_starts = 0
        self._watchdog = WorkerWatchdog(clock)
        self.error: AutopruneError | OSError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles all that it is given, and would write the detector to disk, for no use."""
        return {}

    def ask(self, trial_id: str) -> Candidate | None:
        """The next trial, if any can be begun now."""
        try:
            candidate = None if self.error is not None else self.ledger.ask()
        except (AutopruneError, OSError) as error:  # the disk is full: end Tune's loop, then raise
            self.error = error
            return None
        if candidate is not None:
            self._numbers[trial_id] = candidate.number
        return candidate

    @property
    def failed(self) -> bool:
        """Whether the search has to end."""
        return self.error is not None

    @property
    def done(self) -> bool:
        """Whether no trial is to be proposed or in flight."""
        return self.failed or self.ledger.done

    def begin(self, trial_id: str) -> None:
        """A worker has loaded everything and starts the trial."""
        self._began.add(trial_id)
        self._failed_starts = 0
        self._watchdog.begin(trial_id)
        self._changed()

    def report(self, trial_id: str, answer: Mapping[str, Any]) -> bool:
        """Passes a worker's answer to the ledger; whether the trial is promoted to the next rung."""
        number = self._numbers[trial_id]
        try:
            if "broken" in answer:
                self.error = RunError(f"a worker can't begin on node {answer['node']}: {answer['broken']}")
                return False
            if "reason" in answer:
                self.ledger.fail(number, answer["reason"])
                return False
            self._watchdog.answer(trial_id)
            is_promoted = self.ledger.report(number, answer["rung"], answer["metrics"])
            self._changed()
            return is_promoted
        except (AutopruneError, OSError) as error:
            self.error = error
            return False

    def record_cause(self, trial_id: str, cause: str) -> None:
        """Keeps why the trial's worker was lost; the first cause counts."""
        self._causes.setdefault(trial_id, " ".join(cause.split())[:MAX_REASON_CHARACTERS])

    def finish(self, trial_id: str, lost: bool) -> None:
        """Ends a trial; one whose worker was lost goes back into the queue."""
        number = self._numbers.pop(trial_id)
        cause = self._causes.pop(trial_id, "its worker died")
        self._watchdog.forget(trial_id)
        if self.error is not None:
            return
        try:
            if lost:
                say(f"trial {number} lost its worker: {cause}")
                self._requeue_lost(number, cause, trial_id in self._began)
            self._finished(number)
        except (AutopruneError, OSError) as error:
            self.error = error
        finally:
            self._began.discard(trial_id)

    def _requeue_lost(self, number: int, cause: str, began: bool) -> None:
        """Puts the trial back into the queue; the loss counts only where its worker had begun with it."""
        self.ledger.requeue_lost(number, cause, counts=began)
        self._failed_starts += not began
        if self._failed_starts >= MAX_FAILED_STARTS:
            self.error = ResumableError(
                f"{self._failed_starts} workers in a row died before they could begin: {cause}; see Ray's "
                "logs (`ray logs`), then run the same command"
            )

    def overdue(self) -> list[str]:
        """Tune's ids of the trials whose workers are to be killed."""
        overdue = self._watchdog.overdue()
        for trial_id, reason in overdue:
            self.record_cause(trial_id, reason)
        return [trial_id for trial_id, _ in overdue]


# What Ray says of a lost worker, and what we say; the first match counts.
_CAUSES = {
    "low on memory": "its node ran low on memory",
    "node has died": "its node died",
    "actor died": "its worker died",
    "is dead because": "its worker died",
}


def cause_of(text: str) -> str:
    """Ray's pages about a lost worker in a few words: the cause, or the last line of a traceback.

    A worker that could not begin is an actor that died as well; its traceback says more.
    """
    lines = text.strip().splitlines() or ["its worker died"]
    if "in its creation task" in text:
        return lines[-1].strip()
    return next((cause for phrase, cause in _CAUSES.items() if phrase in text), lines[-1].strip())
