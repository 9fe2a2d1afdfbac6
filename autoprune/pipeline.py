"""A whole search: settings in; a run directory and its front out. The same call resumes a run."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

from autoprune.config import Config, load_config, make_config
from autoprune.data.evaluate import evaluate
from autoprune.engines import local
from autoprune.errors import ConfigError, InputError, RunError, TrainingError
from autoprune.files import unwritable
from autoprune.progress import say
from autoprune.proxies import check_proxies
from autoprune.search.account import PARTS, Account
from autoprune.search.ledger import Ledger
from autoprune.search.objective import Objective
from autoprune.search.plan import SpacePlan, identify, read_bounds, warm_criteria
from autoprune.search.results import SearchResult, load_result, study_name
from autoprune.search.rundir import RunDirectory, absolute
from autoprune.search.space import SpaceFile, derive_space, resolve, save_space
from autoprune.search.subject import (
    Subject,
    load_subject,
    refuse_missing,
    score_several,
    take_over_scores,
    with_space,
)
from autoprune.search.trials import LedgerSettings, Record

FAILURES_TO_STOP = 5  # where this many trials have all failed, something else than their policies is wrong
__all__ = ["SearchResult", "search"]

VERSIONED = ("torch", "torchvision", "optuna", "ray", "numpy", "pycocotools")


def search(config: Config | Mapping[str, Any] | str | Path) -> SearchResult:
    """Searches for the best policies within the budget; resumes or extends a run that is there already.

    Args:
        config: settings, their fields as a mapping, or a YAML file with them.

    Raises:
        ConfigError: a setting is wrong, or no weights are given.
        DataError: the data is missing or not in COCO format.
        ModelError: the detector can't be built, or the weights are another architecture's.
        BudgetError: no policy of the space meets the budget.
        RunError: the run directory is of another configuration or in use, or the disk is full.
        TrainingError: trial after trial failed.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after what is finished was written.
    """
    account = Account()
    config = _as_config(config)
    file = None if config.space is None else SpaceFile.load(config.space)
    config = with_space(config, file)
    run = RunDirectory(config.out)
    run.check(config)
    refuse_missing(config)
    with _sigterm_interrupts(), run.locked():
        try:
            run.mend_journal()
            session = _prepare(config, run, file, account)
        except InputError:
            if not run.config_file.exists():
                run.importance_file.unlink(missing_ok=True)
            raise
        except OSError as error:
            raise unwritable(run.path, error) from error
        result = session.go()
    if config.check_proxies:
        machine = {name: getattr(config, name) for name in ("device", "threads", "image_cache_gib", "strict")}
        check_proxies(run.path, config.check_proxies, steps=config.steps, **machine)
    return result


class _Session:
    """One driver's work on a run."""

    def __init__(
        self, config: Config, run: RunDirectory, objective: Objective, ledger: Ledger, account: Account
    ) -> None:
        self.config, self.run, self.objective, self.ledger = config, run, objective, ledger
        self._account = account
        self._at_start = len(ledger.finished())
        account.take_up(ledger.notes.get("seconds", {}))

    def go(self) -> SearchResult:
        """Runs what is left to run, and writes the front whatever happens."""
        try:
            self._measure_dense()
            self._account.begin_trials(self.config.workers if self.config.engine == "ray" else 1)
            if self._at_start:
                say(f"{self._at_start} of {self.config.trials} trials are there already")
            self._run_engine()
            self._write()
            self._say_account()
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

    def _run_engine(self) -> None:
        config = self.config
        if config.engine == "local":
            local.run(self.ledger, self.objective, self._finished)
            return
        from autoprune.engines import ray

        cluster = ray.Cluster(config.address, config.workers, config.cpus_per_trial, config.gpus_per_trial)
        load = partial(Objective.load, absolute(config), self.run.importance_file.resolve())
        ray.run(self.ledger, load, self._finished, cluster)

    def _measure_dense(self) -> None:
        """Measures the dense detector once a run, on the images that trials are measured on."""
        if "dense" in self.ledger.notes:
            return
        subject = self.objective.subject
        with self._account.spend("dense_evaluation"):
            found = evaluate(
                subject.model,
                subject.val,
                subject.device,
                batch_size=self.config.batch_size,
                images=self.config.proxy_images,
            )
        dense = {"map": found.map, "map50": found.map50, **subject.costs({})}
        if self.objective.measures_latency:
            dense["latency_ms"] = self.objective.latency_ms(subject.model)
        self.ledger.note("dense", dense)
        say(f"dense: mAP {100 * found.map:.1f}, {dense['gflops']:.2f} GFLOPs")

    def _finished(self, number: int) -> None:
        """Writes what a trial changed and prints its line."""
        finished = self.ledger.finished()
        record = next((record for record in finished if record.number == number), None)
        if record is None:  # its worker was lost, and it is in the queue again
            return
        self._write()
        say(self._line(record, finished))
        if len(finished) >= FAILURES_TO_STOP and all(r.state == "failed" for r in finished):
            raise TrainingError(f"the first {len(finished)} trials all failed, the last: {record.reason}")

    def _line(self, record: Record, finished: list[Record]) -> str:
        done, total = len(finished), self.config.trials
        metrics = record.metrics
        if record.state == "failed":
            outcome = f"failed: {record.reason}".replace("[", r"\[")
        else:
            outcome = f"mAP {100 * metrics['map']:.1f}, {metrics['gflops']:.2f} GFLOPs"
        if record.state == "stopped":
            outcome += f", stopped at rung {len(record.rungs) - 1}"
        best = max((r.metrics["map"] for r in finished if r.state == "complete"), default=None)
        shown = "none complete" if best is None else f"best {100 * best:.1f}"
        left = self._account.left(done - self._at_start, total - done)
        what = f"trial {record.number} ({record.origin})"
        return f"{done:>{len(str(total))}}/{total} {what}: {outcome}; {shown}; {_duration(left)} left"

    def _write(self) -> None:
        """Brings `front.csv`, the policies and the account of time up to date."""
        rows, policies = [], {}
        for record in self.ledger.front():
            metrics = {name: value for name, value in record.metrics.items() if not name.endswith("_s")}
            keep = self.ledger.plan.keep(record.widths)
            policies[record.number] = self.objective.subject.policy(keep, metrics)
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
        return self._account.seconds(self.ledger.records())

    def _say_account(self) -> None:
        seconds = self._seconds()
        shares = ", ".join(f"{100 * seconds[name] / seconds['wall']:.1f}% {name}" for name in PARTS)
        say(f"search: {_duration(seconds['wall'])}, of it {shares}")


def _prepare(config: Config, run: RunDirectory, file: SpaceFile | None, account: Account) -> _Session:
    """Loads everything, checks everything, and only then writes what was asked for."""
    with account.spend("loading"):
        subject = load_subject(config)
    bounds = read_bounds(config, subject.graph)
    if run.config_file.exists() and run.space_file.exists():
        written = SpaceFile.load(run.space_file)
        if file is not None and file != written:
            raise RunError(f"{run.space_file} differs from {config.space}; choose another --out")
        file = written
    if file is not None:  # budgets out of reach are refused before the importance is computed
        for bound in bounds:
            resolve(file, subject.graph).check(bound)
    with account.spend("importance"):
        take_over_scores(config.space, run.importance_file)
        wanted = warm_criteria(config.criterion) if config.warm_starts else (config.criterion,)
        criteria = score_several(subject, wanted, run.importance_file)
        importance = criteria[config.criterion]
    if file is None:
        file = derive_space(subject.graph, importance, subject.spec, subject.input_size, config.criterion)
    space = resolve(file, subject.graph, importance)
    identity = identify(subject.weights_sha256, file, bounds)
    plan = SpacePlan(space, bounds, criteria if config.warm_starts else {}, identity, config.criterion)
    if (coarse := plan.coarseness()) is not None:
        say(coarse)
    objective = Objective(subject, importance)
    run.write_config(config, _notes(subject))
    if not run.space_file.exists():
        save_space(run.space_file, file, subject.graph, importance)
    settings = LedgerSettings(
        trials=config.trials,
        objectives=config.objectives,
        rungs=len(config.rungs),
        rung_keep=config.rung_keep,
        sampler=config.sampler,
        seed=config.seed,
        parallel=config.engine == "ray" and config.workers > 1,
    )
    ledger = Ledger(config.storage or run.journal_file, study_name(config), plan, settings)
    if config.storage is not None:
        _claim(ledger, run, config.storage)
    return _Session(config, run, objective, ledger, account)


def _claim(ledger: Ledger, run: RunDirectory, storage: str) -> None:
    """Keeps runs of the same name out of one another's studies in a database that several share.

    Raises:
        RunError: the study belongs to another run directory.
    """
    here, owner = str(run.path.resolve()), ledger.notes.get("run")
    if owner is None:
        ledger.note("run", here)
    elif owner != here:
        raise RunError(f"{storage} holds the study of {owner} under this name; choose another --out")


def _notes(subject: Subject) -> dict[str, Any]:
    """Versions and hashes for the head of `config.yaml`."""
    versions = {name: metadata.version(name) for name in VERSIONED if _installed(name)}
    height, width = subject.input_size
    return {
        "autoprune": metadata.version("autoprune") if _installed("autoprune") else "source",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "dense weights": f"sha256 {subject.weights_sha256}",
        "input size": f"{height} x {width} (height x width)",
        "seeds": f"all derived from seed {subject.config.seed}",
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _as_config(config: Config | Mapping[str, Any] | str | Path) -> Config:
    if isinstance(config, Config):
        return config
    if isinstance(config, str | Path):
        return load_config(Path(config))
    if isinstance(config, Mapping):
        return make_config(**config)
    raise ConfigError(f"search takes settings, a mapping or a YAML file, not a {type(config).__name__}")


def _duration(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3.4 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@contextmanager
def _sigterm_interrupts() -> Iterator[None]:
    """Lets SIGTERM end the search as Ctrl-C does, with everything written."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: Any) -> None:
        raise KeyboardInterrupt

    old = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)
