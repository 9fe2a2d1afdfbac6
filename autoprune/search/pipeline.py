"""A whole search: settings in, a run directory and its front out. The same call resumes a run."""

import math
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from autoprune.config import Config
from autoprune.data.coco import absent_classes
from autoprune.engines.table import ENGINES
from autoprune.errors import InputError, ResumableError, RunError
from autoprune.fields import is_vendor
from autoprune.files import naming_paths
from autoprune.graph import ChannelGraph
from autoprune.importance import CURVES, Importance
from autoprune.process import signals_interrupt
from autoprune.progress import say
from autoprune.recovery.proxy_check import check_proxies
from autoprune.run.directory import RunDirectory
from autoprune.run.origin import SETTINGS_NOTE, settings_to_note
from autoprune.run.results import SearchResult, study_name
from autoprune.search.checks import check, load_checked
from autoprune.search.curves import may_empty, score_curves
from autoprune.search.make_plan import LatencyModels, make_plan, say_prediction_error
from autoprune.search.plan import SpacePlan, read_bounds, warm_criteria
from autoprune.search.session import Session, cluster_of
from autoprune.search.wall_time import WallTime
from autoprune.space.derive import REACH, derive_space
from autoprune.space.file import SpaceFile
from autoprune.space.render import save_space
from autoprune.study.ledger import Ledger
from autoprune.study.storage import check_storage, shown, storage_failures
from autoprune.study.trials import LedgerSettings
from autoprune.task.checks import trained_on
from autoprune.task.detection_precision import NOTE as DETECTION_NOTE
from autoprune.task.detection_precision import check_detection, noted_detection, with_detection
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.pruning_task import PruningTask
from autoprune.task.scoring import copy_scores, score_several
from autoprune.task.sensitivity import copy_curves

__all__ = ["SearchResult", "search"]

ROOM = 0.75  # a space whose smallest policy uses this fraction of a budget leaves a choice within it
SHOWN = 5  # classes that are named in a line
# of this call, not of the run, as `config.yaml` has them
HERE = ("data", "weights", "weights_key", "device", "threads", "image_cache_gib", "strict", "evaluator")
VERSIONED = ("torch", "torchvision", "optuna", "ray", "numpy", "pycocotools", "hotcoco")


@naming_paths()
def search(config: Config | Mapping[str, Any] | str | Path, accept_data_change: bool = False) -> SearchResult:
    """Searches for the best policies within the budget; resumes or extends a run that exists already.

    Settings that decide what the search is and are not given are the run's own, where it exists.

    Args:
        config: settings, their fields as a mapping, or a YAML file with them.
        accept_data_change: go on where the run has been on other data: the dense detector is measured again,
            and the trials so far are set aside.

    Raises:
        ConfigError: a setting is wrong, or no weights are given.
        DataError: the data is missing, or in no layout that is read.
        ModelError: the detector can't be built, or the weights are another architecture's.
        BudgetError: no policy of the space meets the budget.
        RunError: the run directory is of another configuration, of other data or in use, its study is lost,
            the storage or the cluster can't be reached or is lost, a file can't be read or written, or the
            disk is full.
        TrainingError: trial after trial failed.
        KeyboardInterrupt: stopped by Ctrl-C or SIGTERM, after the finished trials were written.
    """
    wall_time = WallTime()
    config, run, file = check(config)
    ENGINES[config.engine].check(cluster_of(config))
    check_storage(config.storage)  # last, for it may make a database
    with signals_interrupt(), run.locked(), storage_failures(config.storage):
        with _before_it_began(run):
            run.repair_journal()
            session, latency = _prepare(config, run, file, wall_time, accept_data_change)
        result = session.run()
        for pixels, model in latency.items():
            say_prediction_error(model, result, pixels if len(latency) > 1 else None)
    if config.check_proxies:
        here = {name: getattr(config, name) for name in HERE}
        check_proxies(run.path, config.check_proxies, steps=config.steps, **here)
    return result


def _prepare(
    config: Config, run: RunDirectory, file: SpaceFile | None, wall_time: WallTime, accept_data_change: bool
) -> tuple[Session, LatencyModels]:
    """The steps before the first trial; all checks come before the first file of the run."""
    task, file, notes = load_checked(config, run, file, wall_time, accept_data_change)
    config = task.config
    with wall_time.spend("dense_evaluation"):
        detection = noted_detection(notes) or check_detection(task)
    task = with_detection(task, detection)

    # score the channels; where no space is given, derive one from the scores
    with wall_time.spend("importance"):
        scores = _score(task, run, file)
    importance, ranking = scores[config.criterion], next(iter(scores.values()))
    file = file or derived_space(task, ranking)

    # what trials may propose within the budgets, and what a trial does
    plan, latency = make_plan(task, file, scores, run)
    dense_ms = latency[task.pixels].dense_ms if latency else None
    evaluator = PolicyEvaluator(task, plan.space, importance, dense_ms)
    evaluator.check_latency()
    _say_absent_classes(task)
    if (line := trained_on(config, len(task.train))) is not None:
        say(line)

    # write what the run is; open the study that holds its trials
    run.write_config(config, {**_versions(task), "detection": detection.line})
    if not run.space_file.exists():
        save_space(run.space_file, file, task.graph, ranking)
    # without notes the run has no study yet: one of its name in a database is not its own
    ledger = _open_ledger(config, run, plan, task.data_identity if accept_data_change and notes else ())
    with ExitStack() as opened:
        opened.callback(ledger.release)
        if ledger.notes.get("data") != task.data_counts:
            ledger.note("data", task.data_counts)
        if SETTINGS_NOTE not in ledger.notes:
            ledger.note(SETTINGS_NOTE, settings_to_note(run.config()))
        if DETECTION_NOTE not in ledger.notes:
            ledger.note(DETECTION_NOTE, asdict(detection))
        few = len(ledger.finished()) < config.trials
        if few and (line := plan.only_warm_starts(config.trials)) is not None:
            say(line)
        session = Session(task.config, run, evaluator, ledger, wall_time)
        opened.pop_all()  # `Session.run` releases the ledger
    return session, latency


def derived_space(task: PruningTask, ranking: Importance) -> SpaceFile:
    """The space of a search that is given none: bounds from the importance, as the budgets need them."""
    config = task.config
    reach, mparams = _reach(config, task.graph)
    return derive_space(
        task.graph,
        ranking,
        task.spec,
        task.input_size,
        config.criterion,
        reach=reach,
        mparams=mparams,
        empty=config.empty_blocks,
    )


def _reach(config: Config, graph: ChannelGraph) -> tuple[float, float]:
    """What a derived space must reach down to, well below the least budgets: see `derive_space`."""
    budgets = [budget for bound in read_bounds(config, graph) for budget in bound]
    gflops, mparams = (
        [ROOM * budget.limit for budget in budgets if budget.metric == metric]
        for metric in ("gflops", "mparams")
    )
    reach = min([REACH, *(limit / graph.gflops() for limit in gflops)])
    return reach, min(mparams, default=math.inf)


def _score(task: PruningTask, run: RunDirectory, file: SpaceFile | None) -> dict[str, Importance]:
    """Importance by what ranks policies: curves, or the run's criterion; then, for warm starts, by others."""
    config = task.config
    kept = copy_scores(config.space, run.importance_file)
    scores = score_several(task, criteria_of(config), run.importance_file, kept)
    if not config.curves:
        return scores
    copy_curves(config.space, run.curves_file)
    curves = score_curves(task, scores[config.criterion], run.curves_file, may_empty(config, file))
    return {CURVES: curves, **scores}


def criteria_of(config: Config) -> tuple[str, ...]:
    """The criteria that a search scores channels by, the run's own first."""
    return warm_criteria(config.criterion) if config.warm_starts else (config.criterion,)


def _open_ledger(config: Config, run: RunDirectory, plan: SpacePlan, accepts: Collection[str]) -> Ledger:
    """Opens the study; one in a database keeps runs of the same name apart. For ``accepts`` see `Ledger`.

    Raises:
        RunError: the study belongs to another run directory, or is of another search.
    """
    settings = LedgerSettings.from_config(config, ENGINES[config.engine].workers(config))
    ledger = Ledger(config.storage or run.journal_file, study_name(config), plan, settings, accepts)
    if config.storage is not None:
        try:
            _check_owner(ledger, run, config.storage)
        except RunError:
            ledger.release()
            raise
    return ledger


def _check_owner(ledger: Ledger, run: RunDirectory, storage: str) -> None:
    """Refuses a study in a database that is of another run directory, or new where the directory is not."""
    here, owner = str(run.path.resolve()), ledger.notes.get("run")
    if owner is None:
        run.check_study(begun=False)
        ledger.note("run", here)
    elif owner != here:
        raise RunError(f"{shown(storage)} holds the study of {owner} under this name; choose another --out")


def _say_absent_classes(task: PruningTask) -> None:
    """Names the classes that the training images, or those that trials are measured on, do not contain."""
    for split, used, kind, remedy in (
        (task.train, len(task.train), "training images", "training can't keep what it never sees"),
        (
            task.val,
            task.proxy_images,
            "validation images of the proxies",
            "mAP says nothing of it; take other images",
        ),
    ):
        if absent := absent_classes(split, used):
            more = f" and {len(absent) - SHOWN} more classes" if len(absent) > SHOWN else ""
            say(f"the {used} {kind} hold no {', '.join(absent[:SHOWN])}{more}: {remedy}")


def _versions(task: PruningTask) -> dict[str, Any]:
    """Versions and hashes for the head of `config.yaml`."""
    library = task.spec.name.partition(":")[0]
    listed = (*VERSIONED, library) if is_vendor(task.spec.name) else VERSIONED
    versions = {name: metadata.version(name) for name in listed if _is_installed(name)}
    height, width = task.input_size
    return {
        "autoprune": metadata.version("autoprune") if _is_installed("autoprune") else "source",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "dense weights": f"sha256 {task.weights_sha256}",
        **{name: _data_line(task, name) for name in task.data_identity},
        "input size": f"{height} x {width} (height x width)",
        "seeds": f"all derived from seed {task.config.seed}",
    }


def _data_line(task: PruningTask, split: str) -> str:
    counts = ", ".join(f"{count} {what}" for what, count in task.data_counts[split].items())
    return f"{counts}, hash {task.data_identity[split]}, as the run began"


def _is_installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


@contextmanager
def _before_it_began(run: RunDirectory) -> Iterator[None]:
    """Removes what was written for a run that is refused before it began; says what another stop leaves."""
    files = (
        run.config_file,
        run.space_file,
        run.importance_file,
        run.curves_file,
        run.latency_file,
        run.journal_file,
    )
    begun = run.config_file.exists()
    new = [file for file in files if not begun and not file.exists()]
    sized = run.latency_file_at(0).name.replace("0", "*")  # at sizes that are not known yet
    before = set(run.path.glob(sized))
    try:
        yield
    except ResumableError:
        say(_kept(run, begun))
        raise
    except (InputError, OSError):
        for file in (*new, *(set() if begun else {*run.path.glob(sized)} - before)):
            file.unlink(missing_ok=True)
        raise
    except KeyboardInterrupt:
        raise KeyboardInterrupt(_kept(run, begun)) from None


def _kept(run: RunDirectory, begun: bool) -> str:
    """What there is of a run that was stopped before its first trial, or the first after it was resumed."""
    if begun:
        return f"no trial was begun; those in {run.path} are kept, and the same command resumes it"
    if (scores := run.importance_file).exists():
        curves = f" and curves in {run.curves_file}" if run.curves_file.exists() else ""
        return (
            f"no trial was begun; the scores of the channels are kept in {scores}{curves}, and the same "
            "command takes them"
        )
    return "no trial was begun, and nothing is kept; the same command starts from the beginning"
