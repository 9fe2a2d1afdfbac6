"""What the Ray engine decides without Ray: which trial is whose, and who has been silent for too long."""

import math
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from autoprune import __version__
from autoprune.errors import AutopruneError, RunError
from autoprune.progress import say
from autoprune.study.ledger import Ledger
from autoprune.study.trials import Candidate

# A worker that is silent for this many times the median of its rung, and for this long, is killed.
LIMIT_MEDIANS, LEAST_LIMIT_S = 10, 60.0
MOST_CHARACTERS = 200  # of a reason
MOST_STILLBORN = 5  # workers in a row that die before they begin, after which the search ends
ENOUGH = 3  # answers at a rung from which there is a median


@dataclass(frozen=True)
class Cluster:
    """Where to run and how much each worker takes; see `Config` for the fields of the same names.

    Attributes:
        must_see: files and folders that every node must have as this one has them.
    """

    address: str | None = None
    workers: int = 1
    cpus_per_trial: float = 1.0
    gpus_per_trial: float = 0.0
    must_see: tuple[Path, ...] = ()


def worker_slots(resources: Mapping[str, float], cluster: Cluster) -> int:
    """How many workers fit on a node."""
    wanted = {"CPU": cluster.cpus_per_trial, "GPU": cluster.gpus_per_trial}
    counts = [resources.get(name, 0) / amount + 1e-9 for name, amount in wanted.items() if amount > 0]
    return math.floor(min(counts))


class Dispatch:
    """The ledger as Tune's searcher, scheduler and callback share it; trials go by Tune's ids here.

    Args:
        ledger: asks, decides and keeps.
        finished: called with a trial's number after each trial.
        changed: called when a worker begins a trial or ends a rung.

    Attributes:
        error: what the search has to end with; the driver's disk is full, or a worker can't load its data.
    """

    def __init__(
        self, ledger: Ledger, finished: Callable[[int], None], changed: Callable[[], None] = lambda: None
    ) -> None:
        """Knows of no trial yet."""
        self.ledger, self._finished, self._changed = ledger, finished, changed
        self._numbers: dict[str, int] = {}
        self._causes: dict[str, str] = {}
        self._began: set[str] = set()
        self._stillborn = 0
        self._silence = Silence()
        self.error: AutopruneError | OSError | None = None

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles all that it is given, and would write down the detector, for no use."""
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
        """Whether nothing is left to do or in flight."""
        return self.failed or self.ledger.done

    def begin(self, trial_id: str) -> None:
        """A worker has the trial and is ready to work on it."""
        self._began.add(trial_id)
        self._stillborn = 0
        self._silence.begin(trial_id)
        self._changed()

    def report(self, trial_id: str, answer: Mapping[str, Any]) -> bool:
        """Passes a worker's answer to the ledger; whether the trial goes on."""
        number = self._numbers[trial_id]
        try:
            if "broken" in answer:
                self.error = RunError(f"a worker can't begin on node {answer['node']}: {answer['broken']}")
                return False
            if "reason" in answer:
                self.ledger.fail(number, answer["reason"])
                return False
            self._silence.answer(trial_id)
            is_promoted = self.ledger.report(number, answer["rung"], answer["metrics"])
            self._changed()
            return is_promoted
        except (AutopruneError, OSError) as error:
            self.error = error
            return False

    def record_cause(self, trial_id: str, cause: str) -> None:
        """Keeps why the trial's worker was lost; the first cause counts."""
        self._causes.setdefault(trial_id, " ".join(cause.split())[:MOST_CHARACTERS])

    def finish(self, trial_id: str, lost: bool) -> None:
        """Ends a trial; one whose worker was lost goes back into the queue."""
        number = self._numbers.pop(trial_id)
        cause = self._causes.pop(trial_id, "its worker died")
        self._silence.end(trial_id)
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
        """Puts the trial back into the queue; it is to blame only where its worker had begun with it."""
        self.ledger.requeue_lost(number, cause, counts=began)
        self._stillborn += not began
        if self._stillborn >= MOST_STILLBORN:
            self.error = RunError(
                f"{self._stillborn} workers in a row died before they could begin: {cause}; see Ray's logs "
                "(`ray logs`), then run the same command"
            )

    def overdue(self) -> list[str]:
        """Tune's ids of the trials whose workers are to be killed."""
        found = self._silence.overdue()
        for trial_id, why in found:
            self.record_cause(trial_id, why)
        return [trial_id for trial_id, _ in found]


class Silence:
    """How long workers have not answered, by the clock of the driver."""

    def __init__(self) -> None:
        """Knows of no trial and no median."""
        self._since: dict[str, tuple[int, float]] = {}  # rung, and when it was begun
        self._seconds: defaultdict[int, list[float]] = defaultdict(list)

    def begin(self, trial_id: str) -> None:
        """The trial's first rung begins now."""
        self._since[trial_id] = 0, time.monotonic()

    def answer(self, trial_id: str) -> None:
        """The trial's rung is done, and the next begins."""
        rung, since = self._since.get(trial_id, (0, time.monotonic()))
        self._seconds[rung].append(time.monotonic() - since)
        self._since[trial_id] = rung + 1, time.monotonic()

    def end(self, trial_id: str) -> None:
        """The trial needs no watch any more."""
        self._since.pop(trial_id, None)

    def limit_s(self, rung: int) -> float | None:
        """Seconds that a rung may take; ``None`` until enough trials have shown what it takes."""
        seconds = self._seconds[rung]
        return max(LEAST_LIMIT_S, LIMIT_MEDIANS * median(seconds)) if len(seconds) >= ENOUGH else None

    def overdue(self) -> list[tuple[str, str]]:
        """Trials above the limit, each named once, with what to say."""
        found = []
        for trial_id, (rung, since) in list(self._since.items()):
            limit, silent = self.limit_s(rung), time.monotonic() - since
            if limit is not None and silent > limit:
                self.end(trial_id)
                typical = median(self._seconds[rung])
                found.append(
                    (trial_id, f"no answer at rung {rung} for {silent:.0f} s (the median is {typical:.0f} s)")
                )
        return found


# What Ray says of a worker that was lost, and what we say; the first that fits.
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
    return next((cause for sign, cause in _CAUSES.items() if sign in text), lines[-1].strip())


def missing_inputs(paths: Mapping[str, int | None]) -> str | None:
    """What a node lacks, in a few words; runs there.

    Args:
        paths: files with their sizes in bytes, folders with ``None``.
    """
    for name, size in paths.items():
        path = Path(name)
        if not path.exists():
            return f"can't see {name}"
        if size is not None and path.stat().st_size != size:
            return f"has another {name} ({path.stat().st_size} bytes, here {size})"
    return None


def sizes(paths: tuple[Path, ...]) -> dict[str, int | None]:
    """What `look` compares, as it is here."""
    return {str(path): path.stat().st_size if path.is_file() else None for path in paths}


def version() -> str:
    """The version of autoprune that a node has; runs there."""
    return __version__


def kill(pid: int) -> None:
    """Kills a process, frozen or not; runs on its node."""
    os.kill(pid, signal.SIGKILL)
