"""What the report shows of a run, read from its directory; an unfinished run has less of it."""

import csv
import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from autoprune.config import Config
from autoprune.errors import RunError
from autoprune.files import naming_paths
from autoprune.importance import load as load_scores
from autoprune.recovery.proxy_check import ProxyCheck, load_check
from autoprune.report.entries import recovered_metrics
from autoprune.run.directory import RunDirectory
from autoprune.run.documents import LATENCIES
from autoprune.run.names import LATENCY_FILE, LOSSES_FILE
from autoprune.run.results import SearchResult, load_result
from autoprune.space.file import SpaceFile
from autoprune.study.records import Record

CURVE_POINTS = 41
LOSS_POINTS = 240  # at most in a loss curve; each is the mean of as many steps


@dataclass(frozen=True)
class Group:
    """One channel group that the search may prune.

    Attributes:
        name: its first producer.
        width: channels of the dense detector.
        max_ratio: the largest fraction of them that the space allows to remove; ``None`` if unknown.
        curve: fraction of the importance that the least important channels hold, at `CURVE_POINTS` even steps
            from none to all of them; empty if unknown.
    """

    name: str
    width: int
    max_ratio: float | None
    curve: tuple[float, ...]


@dataclass(frozen=True)
class RunSummary:
    """What the report shows of a run.

    Attributes:
        run: the run directory.
        config: the run's settings.
        result: trials, front and dense detector; empty before the search has started.
        groups: channel groups in the detector's order.
        recovered: `metrics.json` of each recovered trial, but those that were set aside.
        losses: for each recovered trial (step, mean loss up to it) pairs.
        latencies: for each recovered trial the rows of `latency.json`.
        check: how well proxies predict the recovered mAP, if that was measured.
    """

    run: Path
    config: Config
    result: SearchResult
    groups: tuple[Group, ...]
    recovered: Mapping[int, Mapping[str, Any]]
    losses: Mapping[int, Sequence[tuple[int, float]]]
    latencies: Mapping[int, Sequence[Mapping[str, Any]]]
    check: ProxyCheck | None

    @property
    def set_aside(self) -> tuple[Record, ...]:
        """The trials that were measured on other data, by number."""
        return tuple(record for record in self.result.records if record.other_data and record.is_first)

    @property
    def records(self) -> tuple[Record, ...]:
        """The trials that count towards ``trials`` (repeats do not), by number."""
        return tuple(record for record in self.result.records if record.counts)


@naming_paths()
def read_run_summary(run: Path) -> RunSummary:
    """Reads a run directory; neither detector nor data is loaded.

    Raises:
        RunError: it is not a run directory, or one of its files can't be read.
    """
    directory = RunDirectory(run)
    config = directory.config()
    has_study = config.storage is not None or directory.has_journal()
    if not has_study:
        directory.check_study(begun=False)
    result = load_result(run) if has_study else SearchResult(run, (), (), {}, {})
    recovered = {n: metrics for n, metrics in recovered_metrics(run).items() if n not in result.set_aside}
    folders = {number: directory.recovered_folder(number) for number in recovered}
    return RunSummary(
        run,
        config,
        result,
        _groups(directory, config, result),
        recovered,
        {
            number: _losses(folder / LOSSES_FILE)
            for number, folder in folders.items()
            if (folder / LOSSES_FILE).is_file()
        },
        {
            number: LATENCIES.read(folder / LATENCY_FILE)
            for number, folder in folders.items()
            if (folder / LATENCY_FILE).is_file()
        },
        load_check(run, result.set_aside),
    )


def _groups(directory: RunDirectory, config: Config, result: SearchResult) -> tuple[Group, ...]:
    """The groups whose widths trials set, with their importance curve and bound."""
    scores = load_scores(directory.importance_file, config.criterion) or {}
    widths = {name: len(values) for name, values in scores.items()}
    for point in result.front if not scores else ():
        widths.update(point.policy.widths)
    ratios: dict[str, float | None] = {}
    if directory.space_file.is_file():
        for rule in SpaceFile.load(directory.space_file).groups:  # the last match wins
            ratios.update(dict.fromkeys(fnmatch.filter(widths, rule.match), rule.max_ratio))
    searched = next((record.widths for record in result.records if record.widths), None)
    names = [name for name in (widths if searched is None else searched) if name in widths]
    return tuple(
        Group(name, widths[name], ratios.get(name), curve(scores[name]) if name in scores else ())
        for name in names
    )


def curve(scores: NDArray[np.float64]) -> tuple[float, ...]:
    """The Lorenz curve of a group's scores [width]: see `Group.curve`.

    A straight line from 0 to 1 if no channel has any importance.
    """
    total = float(np.sum(scores))
    fractions = np.linspace(0, 1, CURVE_POINTS)
    if total <= 0:
        return tuple(fractions.tolist())
    held = np.concatenate([[0.0], np.cumsum(np.sort(scores))]) / total
    return tuple(np.interp(fractions, np.linspace(0, 1, len(held)), held).round(4).tolist())


def _losses(file: Path) -> list[tuple[int, float]]:
    """(step, loss) pairs; a long training is averaged over `LOSS_POINTS` intervals, each at its last step."""
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            values = np.array([float(row["loss"]) for row in csv.DictReader(lines)])
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        problem = f"{type(error).__name__}: {error}"
        raise RunError(
            f"{file} must hold a step and a loss per line ({problem}); delete the file, and the report goes "
            "without its curve"
        ) from error
    intervals = np.array_split(values, min(LOSS_POINTS, max(len(values), 1)))
    ends = np.cumsum([len(part) for part in intervals])
    return [
        (int(end), round(float(part.mean()), 5))
        for end, part in zip(ends, intervals, strict=True)
        if len(part)
    ]
