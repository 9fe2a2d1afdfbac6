"""One driver's work on a run: the dense detector measured, trials run, the front written after each."""

from functools import partial
from pathlib import Path

from autoprune.config import Config, DataPaths
from autoprune.data.evaluate import evaluate
from autoprune.engines import local
from autoprune.errors import TrainingError
from autoprune.files import unwritable
from autoprune.importance import Importance
from autoprune.progress import StatusDisplay, say
from autoprune.run.directory import RunDirectory, absolute
from autoprune.run.results import SearchResult, load_result
from autoprune.search.status import status
from autoprune.search.tracking import Tracker, log_trial, open_trackers
from autoprune.search.wall_time import PARTS, WallTime
from autoprune.study.ledger import Ledger
from autoprune.study.rungs import first_systematic_failure
from autoprune.study.trials import Record
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.pruning_task import load_task

FAILURES_TO_STOP = 5  # where this many trials fail at a rung that none passed, not their policies are wrong


class Session:
    """One driver's work on a run.

    Args:
        config: what was asked.
        run: where everything is written.
        objective: does the work of a trial.
        ledger: knows the trials.
        account: books the time.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        evaluator: PolicyEvaluator,
        ledger: Ledger,
        wall_time: WallTime,
    ) -> None:
        """Takes up where earlier sessions left."""
        self.config, self.run, self.evaluator, self.ledger = config, run, evaluator, ledger
        self._wall_time = wall_time
        self._at_start = len(ledger.finished())
        self._status = StatusDisplay()
        self._trackers: list[Tracker] = []
        wall_time.resume_from(ledger.notes.get("seconds", {}))

    def go(self) -> SearchResult:
        """Runs what is left to run, and writes the front whatever happens."""
        try:
            self._measure_dense()
            self._wall_time.begin_trials(self.config.workers if self.config.engine == "ray" else 1)
            if self._at_start:
                say(f"{self._at_start} of {self.config.trials} trials are there already")
            self._trackers = open_trackers(self.config, self.run.path, self.ledger)
            self._run_engine()
            self._write()
            self._say_account()
            say(f"{self.run.path} takes {self.run.megabytes():.1f} MB")
            if self.ledger.exhausted:
                say("the search space holds no other policy within the budget")
            return load_result(self.run.path)
        except KeyboardInterrupt:
            self._write()
            done = len(self.ledger.finished())
            say(
                f"stopped: {done} of {self.config.trials} trials are finished and kept in {self.run.path}; "
                "the same command goes on from there"
            )
            raise
        except OSError as error:
            raise unwritable(self.run.path, error) from error
        finally:
            for tracker in self._trackers:
                tracker.close()
            self.ledger.release()

    def _run_engine(self) -> None:
        config = self.config
        if config.engine == "local":
            local.run(self.ledger, self.evaluator, self._finished)
            return
        from autoprune.engines import ray

        there = absolute(config)
        cluster = ray.Cluster(
            config.address, config.workers, config.cpus_per_trial, config.gpus_per_trial, inputs(there)
        )
        # The scores travel along: no node but this one needs to see the run directory.
        load = partial(_load, there, self.evaluator.importance, self.evaluator.dense_ms)
        with self._status:
            ray.run(self.ledger, load, self._finished, cluster, self._changed)

    def _measure_dense(self) -> None:
        """Measures the dense detector once a run, on the images that trials are measured on."""
        if "dense" in self.ledger.notes:
            return
        task = self.evaluator.task
        with self._wall_time.spend("dense_evaluation"):
            found = evaluate(
                task.model,
                task.val,
                task.device,
                batch_size=self.config.batch_size,
                images=self.config.proxy_images,
                error=True,
            )
        dense = {"map": found.map, "map50": found.map50, **task.costs({})}
        if found.map_error is not None:
            dense["map_error"] = found.map_error
        if self.evaluator.measures_latency:
            known = self.evaluator.dense_ms  # what a share as a budget was taken of
            dense["latency_ms"] = self.evaluator.latency_ms(task.model) if known is None else known
        self.ledger.note("dense", dense)
        say(f"dense: mAP {100 * found.map:.1f}, {dense['gflops']:.2f} GFLOPs")

    def _finished(self, number: int) -> None:
        """Writes what a trial changed and prints its line."""
        finished = self.ledger.finished()
        record = next((record for record in self.ledger.records() if record.number == number), None)
        if record is None:  # its worker was lost, and it is in the queue again
            return
        self._write()
        log_trial(self._trackers, record, finished)
        say(self._line(record, finished) if record.repeat_of is None else self._repeat_line(record, finished))
        if (
            record.state == "failed"
            and (first := first_systematic_failure(finished, FAILURES_TO_STOP)) is not None
        ):
            raise TrainingError(
                f"every trial failed at rung {len(first.rungs)}, the first of them, trial {first.number}: "
                f"{first.reason}"
            )

    def _changed(self) -> None:
        """Shows what the workers do now."""
        records = self.ledger.records()
        done = sum(record.counts and record.state != "running" for record in records)
        self._status.show(status(records, self.ledger.front(), self.config.trials, self._left(done)))

    def _left(self, done: int) -> str:
        return _duration(self._wall_time.left(done - self._at_start, self.config.trials - done))

    def _line(self, record: Record, finished: list[Record]) -> str:
        done, total = len(finished), self.config.trials
        metrics = record.metrics
        if record.state == "failed":
            outcome = f"failed: {record.reason}"
        else:
            outcome = f"mAP {100 * metrics['map']:.1f}, {metrics['gflops']:.2f} GFLOPs"
        if record.state == "stopped":
            outcome += f", stopped at rung {len(record.rungs) - 1}"
        best = max((r.metrics["map"] for r in finished if r.state == "complete"), default=None)
        shown = "none complete" if best is None else f"best {100 * best:.1f}"
        what = f"trial {record.number} ({record.origin})"
        return f"{done:>{len(str(total))}}/{total} {what}: {outcome}; {shown}; {self._left(done)} left"

    def _repeat_line(self, record: Record, finished: list[Record]) -> str:
        first = next(other for other in finished if other.number == record.repeat_of)
        if record.state == "failed":
            return f"trial {first.number} again: failed: {record.reason}"
        rivals = [r for r in finished if r.state == "complete" and r.budget == first.budget]
        best = max(rivals, key=lambda rival: rival.metrics["map"])
        at = "" if first.budget is None else f" at {first.budget:.2f} GFLOPs"
        maps = (100 * value for value in (record.metrics["map"], first.rungs[-1]["map"], best.metrics["map"]))
        now, before, leads = (f"{value:.1f}" for value in maps)
        return (
            f"trial {first.number} again, with another seed: mAP {now} after {before}; best{at}: "
            f"trial {best.number}, {leads}"
        )

    def _write(self) -> None:
        """Brings `front.csv`, the policies and the account of time up to date."""
        rows, policies = [], {}
        for record in self.ledger.front():
            metrics = {name: value for name, value in record.metrics.items() if not name.endswith("_s")}
            keep = self.ledger.plan.keep(record.widths)
            policies[record.number] = self.evaluator.task.policy(keep, metrics)
            rows.append(
                {
                    "trial": record.number,
                    "origin": record.origin,
                    "budget_gflops": record.budget,
                    **metrics,
                }
            )
        self.run.write_front(rows, policies)
        self.ledger.note("seconds", self._seconds())

    def _seconds(self) -> dict[str, float]:
        return self._wall_time.seconds(self.ledger.records())

    def _say_account(self) -> None:
        seconds = self._seconds()
        fractions = ", ".join(f"{100 * seconds[name] / seconds['wall']:.1f}% {name}" for name in PARTS)
        say(f"search: {_duration(seconds['wall'])}, of it {fractions}")


def inputs(config: Config) -> tuple[Path, ...]:
    """The files and folders that a worker reads: data, and weights that are a file."""
    data = config.data
    if isinstance(data, DataPaths):
        paths = [path for _, split in data for path in (split.annotations, split.images)]
    else:
        paths = [data, *sorted(data.glob("annotations/*.json"))]
    weights = Path(config.weights or "")
    return (*paths, weights) if weights.is_file() else tuple(paths)


def _load(config: Config, importance: Importance, dense_ms: float | None) -> PolicyEvaluator:
    """Loads everything once, in a worker's process."""
    return PolicyEvaluator(load_task(config), importance, dense_ms)


def _duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
