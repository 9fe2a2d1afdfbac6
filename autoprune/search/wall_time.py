"""The wall time of a search by what it was spent on, all its sessions together."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from autoprune.study.records import Record

PARTS = {
    "training": "reconstruction and training",  # of which a trial at rung 0 has the first alone
    "evaluation": "evaluation",
    "importance": "importance",
    "loading": "loading",
    "other": "other",
}
"""The parts by their keys in the study and in JSON, with what people read."""


class WallTime:
    """The wall time of one session, added to that of earlier ones; it starts when the object is made."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._trials_began: float | None = None
        self._spent: dict[str, float] = {"dense_evaluation": 0.0, "importance": 0.0, "loading": 0.0}
        self._earlier: Mapping[str, float] = {}
        self._workers = 1

    @contextmanager
    def spend(self, part: str) -> Iterator[None]:
        """Counts the time of the block as ``dense_evaluation``, ``importance`` or ``loading``."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._spent[part] += time.perf_counter() - started

    def resume_from(self, earlier: Mapping[str, float]) -> None:
        """Adds what `seconds` returned in the last session."""
        self._earlier = earlier

    def begin_trials(self, workers: int) -> None:
        """From now on trials run, ``workers`` at once."""
        self._trials_began, self._workers = time.perf_counter(), workers

    def remaining_s(self, done: int, remaining: int) -> float:
        """Seconds that the ``remaining`` trials will take at the rate of this session's ``done`` ones."""
        began = self._started if self._trials_began is None else self._trials_began
        return (time.perf_counter() - began) / max(done, 1) * max(remaining, 0)

    def seconds(self, records: Sequence[Record]) -> dict[str, float]:
        """Seconds by part; they add up to ``wall``, which counts each worker's time while trials run."""
        now = time.perf_counter()
        began = now if self._trials_began is None else self._trials_began
        wall = began - self._started + (now - began) * self._workers
        spent = {name: self._earlier.get(name, 0.0) + value for name, value in self._spent.items()}
        evaluation = sum(record.seconds("evaluation") for record in records) + spent["dense_evaluation"]
        seconds = {
            "wall": self._earlier.get("wall", 0.0) + wall,
            "training": sum(record.seconds("training") for record in records),
            "evaluation": evaluation,
            **spent,
        }
        counted = sum(seconds[name] for name in PARTS if name != "other")
        seconds["other"] = max(0.0, seconds["wall"] - counted)
        return seconds
