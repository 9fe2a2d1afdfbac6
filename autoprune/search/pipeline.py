"""A whole search: settings in; a run directory and its front out. The same call resumes a run."""

import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

from autoprune.config import Config, load_config, make_config
from autoprune.data.coco import absent_classes
from autoprune.errors import ConfigError, InputError, RunError
from autoprune.files import unwritable
from autoprune.latency.fit import fit_model, on_budget, prediction_error
from autoprune.latency.model import LatencyModel
from autoprune.progress import say
from autoprune.recovery.proxy_check import check_proxies
from autoprune.run.directory import RunDirectory
from autoprune.run.results import SearchResult, study_name
from autoprune.runtimes.extras import need_runtime
from autoprune.search.plan import SpacePlan, identify, read_bounds, warm_criteria
from autoprune.search.session import Session
from autoprune.search.wall_time import WallTime
from autoprune.space.derive import SpaceFile, derive_space, resolve, save_space
from autoprune.study.ledger import Ledger
from autoprune.study.trials import LedgerSettings
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.pruning_task import (
    PruningTask,
    copy_scores,
    load_task,
    refuse_missing,
    score_several,
    with_space,
)

__all__ = ["SearchResult", "search"]

SHOWN = 5  # classes that are named in a line
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
    wall_time = WallTime()
    config = _as_config(config)
    file = None if config.space is None else SpaceFile.load(config.space)
    config = with_space(config, file)
    run = RunDirectory(config.out)
    run.check(config)
    refuse_missing(config)
    need_runtime(config.latency_runtime)
    with _sigterm_interrupts(), run.locked():
        try:
            run.repair_journal()
            session, latency = _prepare(config, run, file, wall_time)
        except InputError:
            if not run.config_file.exists():
                run.importance_file.unlink(missing_ok=True)
                run.latency_file.unlink(missing_ok=True)
            raise
        except OSError as error:
            raise unwritable(run.path, error) from error
        result = session.go()
        if latency is not None and (line := prediction_error(latency, result.records)) is not None:
            say(line)
    if config.check_proxies:
        machine = {name: getattr(config, name) for name in ("device", "threads", "image_cache_gib", "strict")}
        check_proxies(run.path, config.check_proxies, steps=config.steps, **machine)
    return result


def _prepare(
    config: Config, run: RunDirectory, file: SpaceFile | None, wall_time: WallTime
) -> tuple[Session, LatencyModel | None]:
    """Loads everything, checks everything, and only then writes what was asked for."""
    with wall_time.spend("loading"):
        task = load_task(config)
    bounds = read_bounds(config, task.graph)
    if run.config_file.exists() and run.space_file.exists():
        written = SpaceFile.load(run.space_file)
        if file is not None and file != written:
            raise RunError(f"{run.space_file} differs from {config.space}; choose another --out")
        file = written
    if file is not None:  # budgets out of reach are refused before the importance is computed
        for bound in bounds:
            resolve(file, task.graph).check(bound)
    with wall_time.spend("importance"):
        copy_scores(config.space, run.importance_file)
        wanted = warm_criteria(config.criterion) if config.warm_starts else (config.criterion,)
        criteria = score_several(task, wanted, run.importance_file)
        importance = criteria[config.criterion]
    if file is None:
        file = derive_space(task.graph, importance, task.spec, task.input_size, config.criterion)
    space = resolve(file, task.graph, importance)
    latency: LatencyModel | None = None
    if config.budget_latency_ms is not None:
        latency = fit_model(task, space, run.latency_file, begun=run.config_file.exists())
        space, budget = on_budget(latency, space, config.budget_latency_ms)
        bounds = [(*bound, budget) for bound in bounds]
    identity = identify(task.weights_sha256, file, bounds)
    plan = SpacePlan(space, bounds, criteria if config.warm_starts else {}, identity, config.criterion)
    if (coarse := plan.coarseness()) is not None:
        say(coarse)
    evaluator = PolicyEvaluator(task, importance, latency.dense_ms if latency is not None else None)
    evaluator.check_latency(space.keep(space.lowest))
    _say_absent(task)
    run.write_config(config, _notes(task))
    if not run.space_file.exists():
        save_space(run.space_file, file, task.graph, importance)
    settings = LedgerSettings(
        trials=config.trials,
        objectives=config.objectives,
        rungs=len(config.rungs),
        rung_keep=config.rung_keep,
        sampler=config.sampler,
        seed=config.seed,
        parallel=config.engine == "ray" and config.workers > 1,
        confirm=config.confirm,
    )
    ledger = Ledger(config.storage or run.journal_file, study_name(config), plan, settings)
    if config.storage is not None:
        _claim(ledger, run, config.storage)
    return Session(config, run, evaluator, ledger, wall_time), latency


def _say_absent(task: PruningTask) -> None:
    """Says which classes the images of training, or those that trials are measured on, hold nothing of."""
    images = task.config.proxy_images
    count = len(task.val) if images is None else min(images, len(task.val))
    for split, taken, what, remedy in (
        (task.train, len(task.train), "training images", "training can't keep what it never sees"),
        (task.val, count, "validation images of the proxies", "mAP says nothing of it; take other images"),
    ):
        if absent := absent_classes(split, taken):
            more = f" and {len(absent) - SHOWN} more classes" if len(absent) > SHOWN else ""
            say(f"the {taken} {what} hold no {', '.join(absent[:SHOWN])}{more}: {remedy}")


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


def _notes(task: PruningTask) -> dict[str, Any]:
    """Versions and hashes for the head of `config.yaml`."""
    versions = {name: metadata.version(name) for name in VERSIONED if _installed(name)}
    height, width = task.input_size
    return {
        "autoprune": metadata.version("autoprune") if _installed("autoprune") else "source",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "dense weights": f"sha256 {task.weights_sha256}",
        "input size": f"{height} x {width} (height x width)",
        "seeds": f"all derived from seed {task.config.seed}",
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
