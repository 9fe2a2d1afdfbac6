"""`autoprune search --dry-run`: what a search, or what is left of it, will cost on this machine.

The parts are timed on a few images and policies (`part_times`). How many trials reach each rung, which GFLOPs
they have, what re-evaluation adds, and what all of that writes, says a rehearsal: the same plan, ledger and
session in a temporary run directory, with trials that compute nothing and guess their mAP. Nothing is written
elsewhere, and no cluster is contacted.
"""

import math
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from autoprune import progress
from autoprune.config import Config
from autoprune.data.rivals import Rival
from autoprune.engines.table import ENGINES
from autoprune.files import naming_paths
from autoprune.run.directory import RunDirectory, check_writable
from autoprune.run.results import STUDY, load_result
from autoprune.search.checks import check, load_checked
from autoprune.search.curves import may_empty
from autoprune.search.estimate import Estimate, Part, times
from autoprune.search.make_plan import make_plan
from autoprune.search.part_times import time_curves, time_decoding, time_importance, time_trials, timed
from autoprune.search.part_totals import decoding, proxy_check, trial_parts
from autoprune.search.pipeline import criteria_of, derived_space
from autoprune.search.plan import SpacePlan
from autoprune.search.session import Session
from autoprune.search.wall_time import WallTime
from autoprune.seeding import seed as derive
from autoprune.space.render import save_space
from autoprune.study.confirm import SEED_DEVIATION
from autoprune.study.ledger import Ledger
from autoprune.study.records import UNFINISHED, Record
from autoprune.study.trials import LedgerSettings
from autoprune.task.detection_precision import DetectionPrecision, with_detection
from autoprune.task.evaluator import PolicyEvaluator, TrialState
from autoprune.task.pruning_task import PruningTask
from autoprune.task.scoring import score_several

DENSE_MAP = 0.5  # of the rehearsal


class Rehearsed(PolicyEvaluator):
    """Trials that compute nothing: mAP falls with the importance that a policy removes, and has noise."""

    def __init__(self, *args: Any, plan: SpacePlan, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._plan, self._scale = plan, 0.0

    def evaluate(
        self,
        widths: Mapping[str, int],
        rung: int,
        state: TrialState | None,
        repeat: int = 0,
        rivals: Sequence[Rival] = (),
    ) -> tuple[dict[str, float | str], TrialState]:
        """Metrics of a rung; see `PolicyEvaluator.evaluate`."""
        removed = float(self._plan.removed([widths]).sum())
        self._scale = self._scale or removed or 1.0
        noise = np.random.default_rng(derive(0, str(sorted(widths.items())), repeat)).normal(
            0, SEED_DEVIATION
        )
        value = float(np.clip(DENSE_MAP * math.exp(-removed / self._scale / 10) + noise, 0.05, 1.0))
        costs = self.task.costs(self.keep(widths))
        latency = {"latency_ms": costs["gflops"]} if self.measures_latency else {}
        none = {"training_s": 0.0, "evaluation_s": 0.0, "other_s": 0.0}
        return {"map": value, "map50": value, **costs, **latency, **none}, TrialState(self.task.model)


@naming_paths()
def dry_run(config: Config | Mapping[str, Any] | str | Path, accept_data_change: bool = False) -> Estimate:
    """Makes the checks of a search, times its parts, and estimates the whole.

    Args:
        config: as for `pipeline.search`.
        accept_data_change: as for `pipeline.search`.

    Raises:
        AutopruneError: what `pipeline.search` refuses; but whether a cluster or a new storage can be reached
            is not tried.
    """
    threads = torch.get_num_threads()
    try:
        return _estimate(config, accept_data_change)
    finally:
        torch.set_num_threads(threads)


def _estimate(given: Config | Mapping[str, Any] | str | Path, accept_data_change: bool) -> Estimate:
    started = time.perf_counter()
    config, run, file = check(given)
    check_writable(run.path)
    task, file, notes = load_checked(config, run, file, WallTime(), accept_data_change)
    if task.device.type == "cuda" and task.config.detection_precision == "auto":
        task = with_detection(task, DetectionPrecision("bfloat16"))  # as most detectors allow it
    config = task.config
    loading_s = time.perf_counter() - started
    exists = run.config_file.exists()
    same_data = _same_data(task, notes)
    begun = exists and config.storage is None and same_data
    with TemporaryDirectory(prefix="autoprune-") as folder:
        scratch = RunDirectory(Path(folder) / "run")
        scratch.path.mkdir()
        if begun:
            _copy(run, scratch)
        if task.trial_threads is not None:
            torch.set_num_threads(task.trial_threads)
        decoding_s = time_decoding(task)
        parts = [Part("loading and checks", "", loading_s)]
        if begun:  # all that comes before the first trial is in the run directory
            scores = score_several(task, criteria_of(config), scratch.importance_file)
        else:
            if "obs" in criteria_of(config):
                progress.say("timing importance: the eliminations of `obs` are done in full")
            scores, images_s, importance_s = time_importance(task, criteria_of(config), scratch)
            images = min(config.importance_images, len(task.train))
            parts.append(
                Part("images for importance", times(images, images_s), images_s, "--importance-images")
            )
            lower = "--criterion taylor" if config.criterion == "obs" else ""
            parts.append(Part("importance", "", importance_s, lower))
            if config.curves:
                point_s, points = time_curves(task, scores[config.criterion], may_empty(config, file))
                curves_s = points * point_s
                parts.append(Part("curves", times(points, curves_s), curves_s, "--no-curves", True))
        if file is None:
            file = derived_space(task, next(iter(scores.values())))
        (plan, latency), plan_s = timed(task.device, make_plan, task, file, scores, scratch)
        parts.append(Part("one-shot policies", f"{len(plan.warm_starts)}", plan_s, "--no-warm-starts"))
        dense_ms = latency[task.pixels].dense_ms if latency else None
        evaluator = Rehearsed(
            task, plan.space, scores[config.criterion], dense_ms, dense_map=DENSE_MAP, plan=plan
        )
        if not scratch.space_file.exists():
            save_space(scratch.space_file, file, task.graph, next(iter(scores.values())))
        left = _left(config, run) if exists and same_data and not begun else config.trials
        before, after, harness_s = rehearse(task, evaluator, plan, scratch, left, accept_data_change)
        megabytes = scratch.megabytes()
    new = [record for record in after if record.number not in before]
    repeats = sum(record.repeat_of is not None for record in new)
    if any(record.rungs for record in new):
        policies = _policies(new, evaluator)
        costs, dense_image_s = time_trials(task, evaluator, policies)
        if not begun:
            images = task.proxy_images
            dense_s = images * dense_image_s
            parts.append(Part("dense detector", times(images, dense_s), dense_s, "--proxy-images"))
        parts += trial_parts(task, new, costs)
        parts.append(decoding(task, new, decoding_s))
        parts.append(Part("harness", times(len(new), harness_s), harness_s))
        if config.check_proxies:
            parts.append(proxy_check(task, new, costs))
            megabytes += config.check_proxies * 4 * task.graph.mparams()
    workers = ENGINES[config.engine].workers(config)
    if not ENGINES[config.engine].in_driver:
        parts.append(
            Part("loading in workers", times(workers, workers * loading_s), workers * loading_s, "", True)
        )
    return Estimate(
        parts=tuple(parts),
        rungs=tuple(
            sum(len(record.rungs) > rung for record in new) if new else 0 for rung in range(len(config.rungs))
        ),
        trials=sum(record.counts for record in new),
        finished=sum(record.counts for record in after if record.number in before),
        repeats=repeats,
        workers=workers,
        device=task.device.type,
        devices=_devices(config, task.device, workers),
        megabytes=megabytes,
        measuring_s=time.perf_counter() - started,
        unsearched=plan.only_warm_starts(config.trials) if any(record.counts for record in new) else None,
    )


def _copy(run: RunDirectory, scratch: RunDirectory) -> None:
    """Copies what a resumed search reads; recovered detectors and logs are not."""
    files = (run.config_file, run.space_file, run.importance_file, run.curves_file, run.journal_file)
    for file in (*files, *run.path.glob(f"{run.latency_file.stem}*")):
        if file.is_file():
            shutil.copyfile(file, scratch.path / file.name)
    scratch.repair_journal()


def _same_data(task: PruningTask, notes: Mapping[str, Any]) -> bool:
    """Whether a run was begun on the data that there is now, if it was; else its trials will be set aside."""
    before = notes.get("identity", {})
    return all(before.get(name, value) == value for name, value in task.data_identity.items())


def _left(config: Config, run: RunDirectory) -> int:
    """Trials to come of a run whose study can't be copied, as it is in a database."""
    records = load_result(run.path).records
    done = sum(record.counts and record.state not in UNFINISHED for record in records)
    return max(1, config.trials - done)


def rehearse(
    task: PruningTask,
    evaluator: PolicyEvaluator,
    plan: SpacePlan,
    scratch: RunDirectory,
    trials: int,
    accept_data_change: bool,
) -> tuple[set[int], list[Record], float]:
    """Runs a search that computes nothing; returns trials that were there, all records, and its seconds."""
    config = task.config.model_copy(
        update={
            "out": scratch.path,
            "engine": "local",
            "storage": None,
            "trials": trials,
            "track": tuple(name for name in task.config.track if name == "tensorboard"),
        }
    )
    scratch.write_config(config, {})
    settings = LedgerSettings.from_config(config, ENGINES[task.config.engine].workers(task.config))
    accepts = task.data_identity if accept_data_change else ()
    ledger = Ledger(scratch.journal_file, STUDY, plan, settings, accepts)
    before = {record.number for record in ledger.records() if record.state != "running"}
    if "dense" not in ledger.notes:
        dense = {"map": DENSE_MAP, "map50": DENSE_MAP, "map_error": SEED_DEVIATION, **task.costs({})}
        ledger.note("dense", dense if not evaluator.measures_latency else {**dense, "latency_ms": 1.0})
    session = Session(config, scratch, evaluator, ledger, WallTime())
    with progress.show(None):
        _, seconds = timed(task.device, session.run)
    return before, list(load_result(scratch.path).records), seconds


def _policies(
    records: Sequence[Record], evaluator: PolicyEvaluator
) -> list[tuple[float, dict[str, tuple[int, ...]]]]:
    """The cheapest, the median and the dearest policy at the detector's own input size, else at any.

    What a reconstruction takes depends on the widths, which differ at the same GFLOPs.
    """
    measured = [record for record in records if record.rungs]  # the others repeat an earlier policy
    own = [record for record in measured if record.pixels in (None, evaluator.task.pixels)] or measured
    ordered = sorted(own, key=lambda record: record.metrics["gflops"])
    chosen = {each.number: each for each in (ordered[0], ordered[len(ordered) // 2], ordered[-1])}
    keeps = [evaluator.keep(record.widths) for record in chosen.values()]
    return [(evaluator.task.graph.gflops({n: len(k) for n, k in keep.items()}), keep) for keep in keeps]


def _devices(config: Config, device: torch.device, workers: int) -> float:
    """GPUs, or CPU cores, that the search occupies."""
    if ENGINES[config.engine].in_driver:
        return 1.0 if device.type == "cuda" else float(torch.get_num_threads())
    each = config.gpus_per_trial if device.type == "cuda" else config.cpus_per_trial
    return workers * each
