"""One driver's work on a run: measure the dense detector, run trials, write the front after each."""

from contextlib import ExitStack
from functools import partial

from autoprune.config import Config
from autoprune.data.evaluate import evaluate
from autoprune.engines.cluster import Cluster
from autoprune.engines.table import ENGINES
from autoprune.errors import TrainingError
from autoprune.importance import Importance
from autoprune.latency.machine import measured_elsewhere
from autoprune.progress import StatusDisplay, count_of, say
from autoprune.run.directory import RunDirectory, absolute
from autoprune.run.results import SearchResult, load_result
from autoprune.search.status import duration, repeat_line, status, time_line, trial_line
from autoprune.search.tracking import Tracker, log_trial, open_trackers
from autoprune.search.wall_time import WallTime
from autoprune.space.file import SpaceFile
from autoprune.space.input_size import INPUT_PX
from autoprune.space.resolve import resolve
from autoprune.study.ledger import Ledger
from autoprune.study.records import Record
from autoprune.study.rungs import first_systematic_failure
from autoprune.task.checks import input_files
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.pruning_task import load_task

FAILURES_TO_STOP = 5  # trials that fail at a rung that none passed: then it is not their policies' fault


class Session:
    """One driver's work on a run; continues what earlier sessions began.

    Args:
        config: the settings.
        run: where everything is written.
        evaluator: does the work of a trial.
        ledger: holds the trials.
        wall_time: counts the time.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        evaluator: PolicyEvaluator,
        ledger: Ledger,
        wall_time: WallTime,
    ) -> None:
        self.config, self.directory, self.evaluator, self.ledger = config, run, evaluator, ledger
        self._wall_time = wall_time
        self._done_at_start = len(ledger.finished())
        self._status = StatusDisplay()
        self._trackers: list[Tracker] = []
        wall_time.resume_from(ledger.notes.get("seconds", {}))

    def run(self) -> SearchResult:
        """Runs the remaining trials; the front is up to date however this ends.

        Raises:
            TrainingError: trial after trial failed, or all did.
            RunError: the disk is full, or the engine lost its cluster.
            KeyboardInterrupt: stopped by Ctrl-C or SIGTERM.
        """
        trials = self.config.trials
        try:
            if set_aside := sum(record.other_data for record in self.ledger.records()):
                self._write()  # the front holds none of them
                were = "trial was" if set_aside == 1 else "trials were"
                say(f"{set_aside} {were} measured on other data: set aside, neither counted nor ranked")
            if self.evaluator.measures_latency:
                self._check_latency_label()
            self._measure_dense()
            self._wall_time.begin_trials(ENGINES[self.config.engine].workers(self.config))
            if self._done_at_start:
                say(self._already())
            self._trackers = open_trackers(self.config, self.directory, self.ledger)
            self._run_trials()
            self._write()
            _raise_if_all_failed(self.ledger.finished())
            say(time_line(self._seconds()))
            say(f"{self.directory.path} takes {self.directory.megabytes():.1f} MB")
            if self.ledger.exhausted:
                say("the search space holds no other policy within the budget")
            return load_result(self.directory.path)
        except KeyboardInterrupt:
            self._write()
            raise KeyboardInterrupt(
                f"{len(self.ledger.finished())} of {trials} trials are finished and kept in "
                f"{self.directory.path}; the same command resumes the search"
            ) from None
        finally:
            with ExitStack() as ends:  # each, whatever the others raise
                ends.callback(self.ledger.release)
                for tracker in self._trackers:
                    ends.callback(tracker.close)

    def _already(self) -> str:
        """One line: how many trials earlier sessions finished, and whether any are left to do."""
        done, trials = self._done_at_start, self.config.trials
        if done < trials:
            return f"{done} of {trials} trials are finished already"
        has = f"{self.directory.path} has {count_of(done, 'finished trial')} already"
        fewer = "" if done == trials else f", and --trials (YAML: trials) asks for {trials}"
        left = "nothing is left to do" if self.ledger.done else "only its leading trials are measured again"
        return f"{has}{fewer}: {left}"

    def _measure_dense(self) -> None:
        """Measures the dense detector once per run, on the images that trials are measured on."""
        if dense := self.ledger.notes.get("dense"):
            self.evaluator.dense_map = dense["map"]
            return
        evaluator, task = self.evaluator, self.evaluator.task
        with self._wall_time.spend("dense_evaluation"):
            scores = evaluate(
                task.model,
                task.val,
                task.device,
                batch_size=self.config.batch_size,
                images=self.config.proxy_images,
                amp=task.amp,
                error=True,
            )
        dense = {"map": scores.map, "map50": scores.map50, **task.costs({})}
        if scores.map_error is not None:
            dense["map_error"] = scores.map_error
        if evaluator.measures_latency:  # the value that a fraction as a budget was taken of, if there was one
            measured = evaluator.dense_ms
            dense["latency_ms"] = evaluator.latency_ms(task.model) if measured is None else measured
        if task.smaller and task.pixels is not None:
            dense[INPUT_PX] = task.pixels
        evaluator.dense_map = scores.map
        self.ledger.note("dense", dense)
        images = min(self.config.proxy_images or len(task.val), len(task.val))
        seen = count_of(images, "image")
        say(f"dense: mAP {100 * scores.map:.1f} on {seen} of val, {dense['gflops']:.2f} GFLOPs")

    def _check_latency_label(self) -> None:
        """Keeps where the latencies of the trials are measured, and refuses others in a resumed search.

        Raises:
            RunError: the trials so far were measured elsewhere, or with another runtime.
        """
        label = self.evaluator.task.latency_setup.label
        before = self.ledger.notes.get("latency_label")
        if before is None:
            self.ledger.note("latency_label", label)
        elif before != label and not self.ledger.done:
            raise measured_elsewhere(self.directory.path, before, label)

    def _run_trials(self) -> None:
        """Has the engine run trials until the ledger has no more."""
        config, engine = self.config, ENGINES[self.config.engine]
        if engine.in_driver:
            engine.run(self.ledger, lambda: self.evaluator, self._finished, Cluster(), self._changed)
            return
        anywhere = for_workers(config)
        # Space and scores are sent along: no node but this one needs to see the run directory.
        space_file = SpaceFile.load(self.directory.space_file)
        evaluator = self.evaluator
        load = partial(
            load_evaluator,
            anywhere,
            space_file,
            evaluator.importance,
            evaluator.dense_ms,
            evaluator.dense_map,
        )
        with self._status:
            engine.run(self.ledger, load, self._finished, cluster_of(config), self._changed)

    def _finished(self, number: int) -> None:
        """Writes what a trial changed and prints its line.

        Raises:
            TrainingError: no trial passed the rung at which this one failed.
        """
        finished = self.ledger.finished()
        record = next((record for record in self.ledger.records() if record.number == number), None)
        if record is None:  # its worker was lost, and it is in the queue again
            return
        self._write()
        log_trial(self._trackers, record, finished)
        if record.repeat_of is None:
            say(trial_line(record, finished, self.config.trials, self._remaining(len(finished))))
        else:
            say(repeat_line(record, finished))
        if record.state == "failed":
            _raise_if_systematic(finished)

    def _changed(self) -> None:
        """Updates the status display; a worker began a trial or ended a rung."""
        records = self.ledger.records()
        done = sum(record.counts and record.state != "running" for record in records)
        self._status.show(status(records, self.ledger.front(), self.config.trials, self._remaining(done)))

    def _write(self) -> None:
        """Brings `front.csv`, the policies and the wall time up to date."""
        rows, policies = [], {}
        for record in self.ledger.front():
            task = self.evaluator.task.at(record.pixels)
            policy = task.policy(self.evaluator.keep(record.widths), record.values)
            policies[record.number] = policy
            rows.append(
                {
                    "trial": record.number,
                    "origin": record.origin,
                    "budget_gflops": record.budget,
                    **({} if record.pixels is None else {"input_px": record.pixels}),
                    **record.values,
                }
            )
        self.directory.write_front(rows, policies)
        self.ledger.note("seconds", self._seconds())

    def _seconds(self) -> dict[str, float]:
        return self._wall_time.seconds(self.ledger.records())

    def _remaining(self, done: int) -> str:
        """The time that the remaining trials will take, in words."""
        return duration(self._wall_time.remaining_s(done - self._done_at_start, self.config.trials - done))


def for_workers(config: Config) -> Config:
    """The settings that are sent to other processes and nodes; only the driver opens the storage."""
    return absolute(config).model_copy(update={"storage": None})


def cluster_of(config: Config) -> Cluster:
    """Where the settings have trials run."""
    needed = input_files(absolute(config))
    return Cluster(config.address, config.workers, config.cpus_per_trial, config.gpus_per_trial, needed)


def load_evaluator(
    config: Config,
    file: SpaceFile,
    importance: Importance,
    dense_ms: float | None,
    dense_map: float | None,
) -> PolicyEvaluator:
    """Loads everything once, in a worker's process; for the arguments see `PolicyEvaluator`."""
    task = load_task(config)
    space = resolve(file, task.graph, importance)
    return PolicyEvaluator(task, space, importance, dense_ms, dense_map)


def _raise_if_systematic(finished: list[Record]) -> None:
    """Ends a search in which no trial passes a rung.

    Raises:
        TrainingError: `FAILURES_TO_STOP` trials failed there, and none passed; says why the first did.
    """
    if (first := first_systematic_failure(finished, FAILURES_TO_STOP)) is not None:
        raise TrainingError(
            f"every trial failed at rung {len(first.rungs)}, the first of them, trial {first.number}: "
            f"{first.reason}"
        )


def _raise_if_all_failed(finished: list[Record]) -> None:
    """Ends a search without any result, which may have had too few trials for `_raise_if_systematic`.

    Raises:
        TrainingError: says why the first trial failed.
    """
    if finished and all(record.state == "failed" for record in finished):
        first = finished[0]
        raise TrainingError(
            f"all {len(finished)} trials failed, the first of them, trial {first.number}: {first.reason}"
        )
