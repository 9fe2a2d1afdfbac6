"""What a search found, read from its run directory."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from autoprune.config import Config
from autoprune.policy import Policy
from autoprune.search.rundir import RunDirectory
from autoprune.search.study import load_study, read_records
from autoprune.search.trials import Record

STUDY = "autoprune"


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
    """What a search found.

    Attributes:
        run: the run directory.
        front: the policies that no other beats, cheapest first.
        records: all trials.
        dense: metrics of the dense detector on the images that trials are measured on.
        seconds: wall time of the search so far, all sessions together: ``wall``, and what it went to:
            ``training``, ``evaluation`` (the dense detector's too), ``importance``, ``loading`` and
            ``other``. With several workers, ``wall`` counts each one's.
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
        """Share of the wall time that was neither training nor evaluation."""
        wall = self.seconds.get("wall", 0.0)
        work = self.seconds.get("training", 0.0) + self.seconds.get("evaluation", 0.0)
        return max(0.0, 1 - work / wall) if wall else 0.0


LEAST_TO_COMPARE = 3


def indistinct(result: SearchResult) -> str | None:
    """One line where the trials of a budget differ by less than mAP would on other images of the kind."""
    error = result.dense.get("map_error")
    complete = [record for record in result.records if record.counts and record.state == "complete"]
    for budget in sorted({record.budget for record in complete}, key=lambda limit: -(limit or 0)):
        maps = [record.metrics["map"] for record in complete if record.budget == budget]
        if error is None or len(maps) < LEAST_TO_COMPARE or max(maps) - min(maps) >= error:
            continue
        at = "" if budget is None else f" at {budget:.2f} GFLOPs"
        return (
            f"the complete trials{at} differ by {100 * (max(maps) - min(maps)):.1f} mAP, less than the "
            f"standard error of mAP on these validation images, {100 * error:.1f}: too few images to rank "
            "them; give more (--proxy-images, or more validation data)"
        )
    return None


def load_result(path: Path) -> SearchResult:
    """Reads a run directory, finished or not, without loading detector or data.

    Raises:
        RunError: the directory is no run, or has no study.
    """
    run = RunDirectory(path)
    config = run.config()
    study = load_study(config.storage or run.journal_file, study_name(config))
    notes = study.user_attrs
    records = read_records(study)
    points = [
        FrontPoint(record.number, record.origin, Policy.load(file), file)
        for record in records
        if (file := run.policy_file(record.number)).is_file()
    ]
    points.sort(key=lambda point: (point.metrics.get("gflops", 0.0), point.trial))
    return SearchResult(path, tuple(points), tuple(records), notes.get("dense", {}), notes.get("seconds", {}))


def study_name(config: Config) -> str:
    """Name of the study: fixed in a run's own journal, the run's name in a database that several share."""
    return STUDY if config.storage is None else config.out.resolve().name
