"""Which workers have not answered for too long, by the clock of the driver."""

import time
from collections import defaultdict
from collections.abc import Callable
from statistics import median
from typing import NamedTuple

# A worker that takes this many times the median of its rung, and at least this long, is killed.
LIMIT_MEDIANS, MIN_LIMIT_S = 10, 60.0
MIN_ANSWERS = 3  # at a rung, before there is a median


class _Watched(NamedTuple):
    rung: int
    since: float  # seconds of the clock


class Overdue(NamedTuple):
    """A trial whose worker is to be killed, and what to say."""

    trial_id: str
    reason: str


class WorkerWatchdog:
    """Times the rungs of all trials; a worker that takes far longer than others is overdue.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._watched: dict[str, _Watched] = {}
        self._seconds: defaultdict[int, list[float]] = defaultdict(list)  # of each answer, by rung

    def begin(self, trial_id: str) -> None:
        """The trial's first rung begins now."""
        self._watched[trial_id] = _Watched(0, self._clock())

    def answer(self, trial_id: str) -> None:
        """The trial's rung is done, and the next begins; of one that was given up this changes nothing."""
        if trial_id not in self._watched:
            return
        now = self._clock()
        rung, since = self._watched[trial_id]
        self._seconds[rung].append(now - since)
        self._watched[trial_id] = _Watched(rung + 1, now)

    def forget(self, trial_id: str) -> None:
        """The trial is over."""
        self._watched.pop(trial_id, None)

    def limit_s(self, rung: int) -> float | None:
        """Seconds that a rung may take; ``None`` until enough trials have shown what it takes."""
        seconds = self._seconds[rung]
        return max(MIN_LIMIT_S, LIMIT_MEDIANS * median(seconds)) if len(seconds) >= MIN_ANSWERS else None

    def overdue(self) -> list[Overdue]:
        """The trials above the limit; each is returned once."""
        result, now = [], self._clock()
        for trial_id, (rung, since) in list(self._watched.items()):
            limit, silent = self.limit_s(rung), now - since
            if limit is not None and silent > limit:
                self.forget(trial_id)
                typical = median(self._seconds[rung])
                reason = f"no answer at rung {rung} for {silent:.0f} s (the median is {typical:.0f} s)"
                result.append(Overdue(trial_id, reason))
        return result
