"""The results of a search, read from its run directory."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from autoprune.config import Config
from autoprune.policy import Policy
from autoprune.run.directory import RunDirectory
from autoprune.study.records import Record, read_records
from autoprune.study.storage import load_study

STUDY = "autoprune"
LEAST_TO_COMPARE = 3  # trials of a budget; of two, one is always close to the best


@dataclass(frozen=True)
class FrontPoint:
    """One policy on the front.

    Attributes:
        trial: number of the trial.
        origin: the warm start's, or ``"sampler"``.
        policy: which channels are kept; its ``metrics`` are those of the trial's top rung.
        path: the policy's file.
    """

    trial: int
    origin: str
    policy: Policy
    path: Path

    @property
    def metrics(self) -> Mapping[str, Any]:
        """``map``, ``gflops``, ``mparams`` and what else was measured."""
        return self.policy.metrics


@dataclass(frozen=True)
class SearchResult:
    """The results of a search.

    Attributes:
        run: the run directory.
        front: the Pareto-optimal policies, cheapest first.
        records: all trials.
        dense: metrics of the dense detector on the images that trials are measured on.
        seconds: wall time of the search so far, all sessions together: ``wall``, and its parts ``training``,
            ``evaluation`` (with the dense detector's), ``importance``, ``loading`` and ``other``. With
            several workers, ``wall`` adds up all of theirs.
    """

    run: Path
    front: tuple[FrontPoint, ...]
    records: tuple[Record, ...]
    dense: Mapping[str, float]
    seconds: Mapping[str, float]

    @property
    def best(self) -> FrontPoint | None:
        """The point of the front with the highest mAP."""
        return max(self.front, key=lambda point: point.metrics["map"], default=None)

    @property
    def failed(self) -> tuple[Record, ...]:
        """The trials that could not be evaluated, each with its ``reason``."""
        return tuple(record for record in self.records if record.state == "failed" and record.counts)

    @property
    def overhead(self) -> float:
        """Fraction of the wall time that was neither training nor evaluation."""
        wall = self.seconds.get("wall", 0.0)
        work = self.seconds.get("training", 0.0) + self.seconds.get("evaluation", 0.0)
        return max(0.0, 1 - work / wall) if wall else 0.0


def indistinct(result: SearchResult) -> str | None:
    """One line where several trials of a budget are within the standard error of the best; else ``None``.

    Where GFLOPs have no budget, trials of different costs do not compete, and the result is ``None``.
    """
    error = result.dense.get("map_error")
    complete = [record for record in result.records if record.counts and record.state == "complete"]
    for budget in sorted({r.budget for r in complete if r.budget is not None}, reverse=True):
        maps = [record.metrics["map"] for record in complete if record.budget == budget]
        if error is None or len(maps) < LEAST_TO_COMPARE:
            continue
        close = sum(max(maps) - value < error for value in maps)
        if close >= LEAST_TO_COMPARE:
            return (
                f"at {budget:.2f} GFLOPs {close} of {len(maps)} complete trials lie within the standard "
                f"error of mAP on these validation images, {100 * error:.1f}, of the best: too few images to "
                "say which is best; give more (--proxy-images, or more validation data), or recover several "
                "(recover --trial) and compare them on other images"
            )
    return None


def load_result(path: Path) -> SearchResult:
    """Reads a run directory, finished or not, without loading detector or data.

    Raises:
        RunError: it is not a run directory, or has no study.
    """
    run = RunDirectory(path)
    config = run.config()
    study = load_study(config.storage or run.journal_file, study_name(config))
    notes = study.user_attrs
    records = read_records(study)
    points = [
        FrontPoint(record.number, record.origin, replace(Policy.load(file), metrics=scores), file)
        for record in records
        if (file := run.policy_file(record.number)).is_file() and "map" in (scores := policy_metrics(record))
    ]
    points.sort(key=lambda point: (point.metrics["gflops"], point.trial))
    return SearchResult(path, tuple(points), tuple(records), notes.get("dense", {}), notes.get("seconds", {}))


def policy_metrics(record: Record) -> dict[str, Any]:
    """What a policy says of its trial: the metrics of the top rung, without the times that it took."""
    return {name: value for name, value in record.metrics.items() if not name.endswith("_s")}


def study_name(config: Config) -> str:
    """Name of the study: fixed in a run's own journal, the run's name in a database that several share."""
    return STUDY if config.storage is None else config.out.resolve().name
