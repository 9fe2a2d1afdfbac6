"""The results of a search, read from its run directory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from autoprune.config import Config
from autoprune.errors import RunError
from autoprune.files import naming_paths
from autoprune.policy import Policy
from autoprune.progress import count_of
from autoprune.run.directory import RunDirectory
from autoprune.run.lock import is_locked
from autoprune.run.names import LOCK_FILE
from autoprune.study.compare import best_of, like_the_best, was_compared
from autoprune.study.earlier_data import EARLIER
from autoprune.study.lease import is_driven
from autoprune.study.records import UNFINISHED, Record, front_of, read_records
from autoprune.study.storage import load_study, shown

STUDY = "autoprune"
LEAST_TO_COMPARE = 3  # trials of a budget; of two, one is always close to the best


@dataclass(frozen=True)
class FrontPoint:
    """One policy on the front.

    Attributes:
        trial: number of the trial.
        origin: the warm start's, or ``"sampler"``.
        metrics: ``map``, ``gflops``, ``mparams`` and what else was measured at the trial's top rung.
        path: the policy's file.
    """

    trial: int
    origin: str
    metrics: Mapping[str, Any]
    path: Path

    def __repr__(self) -> str:
        """In a line."""
        figures = ", ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
        return f"<FrontPoint: trial {self.trial} ({self.origin}), {figures}; {self.path}>"

    @cached_property
    def policy(self) -> Policy:
        """Which channels are kept.

        Raises:
            RunError: its file is missing.
            PolicyError: its file can't be read.
        """
        if not self.path.exists():
            raise RunError(f"{self.path} is missing; the command of the search, repeated, writes it again")
        return Policy.load(self.path)


@dataclass(frozen=True)
class SearchResult:
    """The results of a search.

    Attributes:
        run: the run directory.
        front: the Pareto-optimal policies, cheapest first.
        records: all trials.
        dense: metrics of the dense detector on the images that trials are measured on.
        seconds: wall time of the search so far, all sessions together: ``wall``, and its parts ``training``
            (with reconstruction), ``evaluation`` (with the dense detector's), ``importance``, ``loading`` and
            ``other``. With several workers, ``wall`` adds up all of theirs.
        notes: all that the study keeps about the run as a whole.
    """

    run: Path
    front: tuple[FrontPoint, ...]
    records: tuple[Record, ...]
    dense: Mapping[str, float]
    seconds: Mapping[str, float]
    notes: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def identity(self) -> Mapping[str, str]:
        """What the study is about: the weights, the space, the data and the budgets, as hashes."""
        return dict(self.notes.get("identity", {}))

    @property
    def earlier_data(self) -> Sequence[Mapping[str, Any]]:
        """The data that trials were set aside with: ``trials`` (numbers), ``dense`` and ``data``, as then."""
        return tuple(self.notes.get(EARLIER, ()))

    @property
    def set_aside(self) -> frozenset[int]:
        """Numbers of the trials that were measured on other data than the run has now."""
        return frozenset(record.number for record in self.records if record.other_data)

    def __repr__(self) -> str:
        """In a line, without what the trials are."""
        best = "none" if self.best is None else f"trial {self.best.trial}"
        counts = f"{count_of(len(self.records), 'trial')}, {len(self.front)} on the front"
        return f"<SearchResult of {self.run}: {counts}, best {best}>"

    @property
    def best(self) -> FrontPoint | None:
        """The point of the front with the highest mAP."""
        return max(self.front, key=lambda point: point.metrics["map"], default=None)

    @cached_property
    def like_best(self) -> frozenset[int]:
        """Numbers of the trials that can't be told from the best of their budget, it not among them."""
        return like_the_best(self.records)

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
    """One line where several trials of a budget can't be told from the best; else ``None``.

    These are the trials of ``like_best``, by the paired error. Where none was kept, they are those within the
    standard error of one mAP. Where GFLOPs have no budget, trials of different costs do not compete, and the
    result is ``None``.
    """
    error = result.dense.get("map_error")
    complete = [record for record in result.records if record.counts and record.state == "complete"]
    for budget in sorted({r.budget for r in complete if r.budget is not None}, reverse=True):
        here = [record for record in complete if record.budget == budget]
        if was_compared(best := best_of(here)):
            close = sum(record.number in result.like_best for record in here)
            if close + 1 >= LEAST_TO_COMPARE:
                return (
                    f"at {budget:.2f} GFLOPs these images can't tell trial {best.number}, the best of "
                    f"{len(here)} complete trials, from {close} others (≈): choose by parameters or latency, "
                    "or recover several (recover --trial) and compare them on other images"
                )
            continue
        if error is None or len(here) < LEAST_TO_COMPARE:
            continue
        maps = [record.metrics["map"] for record in here]
        close = sum(max(maps) - value < error for value in maps)
        if close >= LEAST_TO_COMPARE:
            return (
                f"at {budget:.2f} GFLOPs {close} of {len(maps)} complete trials lie within the standard "
                f"error of mAP on these validation images, {100 * error:.1f}, of the best: too few images to "
                "say which is best; give more (--proxy-images, or more validation data), or recover several "
                "(recover --trial) and compare them on other images"
            )
    return None


@naming_paths()
def load_result(path: Path) -> SearchResult:
    """Reads a run directory, finished or not, without loading detector or data.

    Raises:
        RunError: it is not a run directory, has no study, or can't be read.
    """
    run = RunDirectory(path)
    config = run.config()
    if config.storage is None:
        run.check_study(run.has_journal())
    results = _results(run)  # before the study, which a driver may extend meanwhile
    study = load_study(config.storage or run.journal_file, study_name(config))
    notes = study.user_attrs
    records = read_records(study)
    _check_results(run, config, results, records)
    if not (is_locked(path, LOCK_FILE) if config.storage is None else is_driven(study)):  # it was killed
        records = [replace(r, state="interrupted") if r.state == "running" else r for r in records]
    _check_objectives(run, config, records)
    points = [
        FrontPoint(record.number, record.origin, record.values, run.policy_file(record.number))
        for record in front_of(records, config.objectives)
    ]
    return SearchResult(
        path,
        tuple(points),
        tuple(records),
        notes.get("dense", {}),
        notes.get("seconds", {}),
        notes,
    )


def _results(run: RunDirectory) -> dict[int, Path]:
    """A file or folder of each trial that was finished, as the directory has them."""
    paths = sorted((*run.policies.glob("trial-*.yaml"), *run.recovered.glob("trial-*")))
    numbers = ((path.stem.removeprefix("trial-"), path) for path in paths)
    return {int(number): path for number, path in numbers if number.isdecimal()}


def _check_results(
    run: RunDirectory, config: Config, results: Mapping[int, Path], records: Sequence[Record]
) -> None:
    """Refuses results of trials that the study does not hold: other trials would get their numbers.

    Raises:
        RunError: names the first, as of a journal that was cut, or a database that was put back.
    """
    finished = {record.number for record in records if record.state not in UNFINISHED}
    if lost := [results[number] for number in sorted(results) if number not in finished]:
        study = run.journal_file if config.storage is None else f"the study in {shown(config.storage)}"
        more = f" and {len(lost) - 1} more of {run.path}" if len(lost) > 1 else ""
        raise RunError(
            f"{study} has lost finished trials: that of {lost[0]}{more}; restore it from a copy, choose "
            "another --out, or, to go on without these trials, move their files away"
        )


def _check_objectives(run: RunDirectory, config: Config, records: Sequence[Record]) -> None:
    for record in records:
        missing = [name for name in config.objectives if name not in record.metrics]
        if record.counts and record.state == "complete" and missing:
            raise RunError(
                f"{run.config_file} names the objective {missing[0]}, which was not measured (trial "
                f"{record.number}); put back what the search was begun with"
            )


def recorded_notes(config: Config, run: RunDirectory) -> Mapping[str, Any]:
    """What the study of a run keeps about it, as in `SearchResult`; empty where it holds nothing yet.

    Raises:
        RunError: the study is damaged, or does not hold trials that the run has results of.
    """
    if config.storage is None and not run.has_journal():
        return {}
    results = _results(run)
    try:
        study = load_study(config.storage or run.journal_file, study_name(config))
    except RunError:  # a driver may be killed before it makes the study; who opens it to write says more
        return {}
    _check_results(run, config, results, read_records(study))
    return dict(study.user_attrs)


def study_name(config: Config) -> str:
    """Name of the study: fixed in a run's own journal, the run's name in a database that several share."""
    return STUDY if config.storage is None else config.out.resolve().name
