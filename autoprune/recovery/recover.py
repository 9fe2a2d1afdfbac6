"""Full recovery: the chosen policies are trained back, the dense detector as their teacher."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from autoprune.config import make_config
from autoprune.data.evaluate import Metrics, evaluate
from autoprune.data.samples import save_samples
from autoprune.errors import ConfigError, RunError
from autoprune.export import POLICY_FILE, save_detector
from autoprune.export.card import add_latencies, write_card
from autoprune.files import write_text
from autoprune.graph import prune
from autoprune.importance import Importance
from autoprune.latency.fit import measure_networks
from autoprune.latency.machine import label, versions
from autoprune.policy import Policy
from autoprune.progress import say
from autoprune.recovery.regrow import regrow
from autoprune.run.directory import LOSSES_FILE, METRICS_FILE, RunDirectory
from autoprune.run.results import SearchResult, load_result
from autoprune.runtimes.extras import need_runtime
from autoprune.seeding import seed as derive
from autoprune.space.derive import SpaceFile, resolve
from autoprune.space.space import Space
from autoprune.task.pruning_task import PruningTask, load_task, refuse_missing, score_channels
from autoprune.training import TrainSettings, ranks, train

CHECKPOINT = ".checkpoint.safetensors"
LATENCY_PASSES = 10


@dataclass(frozen=True)
class Recovered:
    """One recovered detector.

    Attributes:
        folder: `policy.yaml`, `model.safetensors` and `metrics.json` are in it, with the loss of each step
            (`losses.csv`) and what is found in a few images (`samples.json`); `autoprune.load` reads it.
        policy: what is kept, with the recovered detector's metrics.
        metrics: what `metrics.json` holds.
    """

    folder: Path
    policy: Policy
    metrics: Mapping[str, Any]

    @property
    def map(self) -> float:
        """MAP on the validation split, a fraction."""
        return float(self.metrics["metrics"]["map"])


@ranks.joined()
def recover(
    run: str | Path, trials: Sequence[int] | None = None, steps: int | None = None, **overrides: Any
) -> list[Recovered]:
    """Trains policies of a run back in full; those that are recovered already are not trained again.

    Started by `torchrun` on several processes, they share each batch; the result is the same for all.

    Args:
        run: the run directory.
        trials: numbers of trials; ``None`` takes the one on the front with the highest mAP.
        steps: optimiser steps; ``None`` takes the run's ``steps``.
        **overrides: fields of `Config` that say how to train, such as ``device`` or ``learning_rate``.

    Raises:
        RunError: the directory is no run, it has no such trial, or its weights have changed.
    """
    directory = RunDirectory(Path(run))
    config = directory.config()
    given = {name: value for name, value in {**overrides, "steps": steps}.items() if value is not None}
    config = make_config(**{**config.model_dump(), **given})
    result = load_result(directory.path)
    numbers = list(trials) if trials is not None else _best(result)
    known = {record.number: record for record in result.records}
    if absent := [number for number in numbers if number not in known or not known[number].widths]:
        raise RunError(f"{run} has no trial {absent[0]}; `autoprune front {run}` lists them")
    refuse_missing(config)
    need_runtime(config.latency_runtime)
    task = load_task(config)
    if any(point.policy.weights_sha256 != task.weights_sha256 for point in result.front):
        raise RunError(f"{config.weights} is not what {run} was made from; put the dense weights back")
    importance = score_channels(task, config.criterion, directory.importance_file)
    space = resolve(SpaceFile.load(directory.space_file), task.graph, importance)
    dense = measure_dense(task)
    recovered = []
    for number in numbers:
        point = next((point for point in result.front if point.trial == number), None)
        widths = np.array([known[number].widths[name] for name in space.names])
        recovered.append(
            recover_policy(
                task,
                space.keep(widths) if point is None else point.policy.keep,
                directory.recovered_folder(number),
                importance,
                dense,
                what=f"recovery of trial {number}",
                notes={"trial": number, "origin": known[number].origin},
                space=space,
            )
        )
    return recovered


def recover_policy(
    task: PruningTask,
    keep: Mapping[str, Sequence[int]],
    folder: Path,
    importance: Importance | None = None,
    dense: Metrics | None = None,
    what: str = "recovery",
    notes: Mapping[str, Any] | None = None,
    space: Space | None = None,
) -> Recovered:
    """Trains one policy back with the settings of ``task.config`` and writes it to a folder.

    What is written is the better, on the validation split, of the trained detector and the one that the
    training began with: where a policy lost little, a short training can cost more than it gains.

    A call that was killed goes on from its checkpoint; a finished one is read back. Two policies that are
    recovered with the same settings see the same images in the same order.

    Args:
        task: dense detector and data.
        keep: kept channels of each pruned group.
        folder: where the result goes.
        importance: scores that weight the channels in the distillation; ``None`` weights all alike.
        dense: the dense detector's scores, to stand beside the result's; see `measure_dense`.
        what: name of the work, for the progress bar.
        notes: more to keep in `metrics.json`.
        space: the search space, whose steps and smallest widths regrowth respects.

    Raises:
        ConfigError: ``regrow_rounds`` is given and the space is not.
        RunError: the folder holds another policy or other settings.
        TrainingError: a loss is not finite.
    """
    config = task.config
    seed = derive(config.seed, "recovery")
    settings = replace(TrainSettings.from_config(config), seed=seed)
    asked = {
        **asdict(settings),
        "norm": task.spec.norm,
        "regrow_rounds": config.regrow_rounds,
        "distill_weighting": config.distill_weighting,
        "reconstruct_images": config.reconstruct_images,
        "recalibration_images": config.recalibration_images,
        "dense_weights": task.weights_sha256,
        "policy": sha256(json.dumps(keep, sort_keys=True).encode()).hexdigest(),
    }
    if (done := _finished(folder, asked)) is not None:
        say(f"{what}: there already, in {folder}")
        return done
    started = time.perf_counter()
    if config.regrow_rounds:
        keep = _regrown(task, space, keep, what)
    model = prune(task.model, task.graph, keep)
    start = task.reinitialize(model, keep, seed)
    checkpoint = folder / CHECKPOINT
    teacher = task.teacher(keep, importance)
    result = train(start, task.train, settings, task.device, teacher, checkpoint, what)
    trained = time.perf_counter()
    if ranks.rank() > 0:
        ranks.wait()
        shared = _finished(folder, asked)
        assert shared is not None
        return shared
    model, found, untrained = _better(task, start, result.model, what)
    costs = task.costs(keep)
    policy = task.policy(keep, {"map": found.map, "map50": found.map50, **costs})
    metrics = {
        **(notes or {}),
        "data": config.data.name if isinstance(config.data, Path) else config.data.val.annotations.name,
        "versions": versions(),
        "input_size": list(task.input_size),
        **found.to_dict(),
        **costs,
        "dense": {**dense.to_dict(), **task.costs({})} if dense is not None else None,
        "untrained_map": untrained,
        "kept": "untrained" if model is start else "trained",
        "training_s": round(trained - started, 3),
        "evaluation_s": round(time.perf_counter() - trained, 3),
        "settings": asked,
    }
    save_detector(folder, model, policy)
    save_samples(folder, {"dense": task.model, "pruned": model}, task.val, task.device)
    lines = [f"{step},{loss:.6g}\n" for step, loss in enumerate(result.losses, 1)]
    write_text(folder / LOSSES_FILE, "".join(["step,loss\n", *lines]))
    write_text(folder / METRICS_FILE, json.dumps(metrics, indent=2) + "\n")
    add_latencies(folder, [_latency(task, model)])
    write_card(folder)
    checkpoint.unlink(missing_ok=True)
    ranks.wait()
    say(f"{what}: mAP {100 * found.map:.1f}, {costs['gflops']:.2f} GFLOPs, in {folder}")
    return Recovered(folder, policy, metrics)


def _better(
    task: PruningTask, start: nn.Module, trained: nn.Module, what: str
) -> tuple[nn.Module, Metrics, float]:
    """The better of two detectors on the validation split, its scores, and the mAP of the first."""
    before, after = (
        evaluate(model, task.val, task.device, batch_size=task.config.batch_size)
        for model in (start.to(task.device), trained)
    )
    if after.map >= before.map:
        return trained, after, before.map
    say(
        f"{what}: mAP {100 * before.map:.1f} before the training and {100 * after.map:.1f} after it; the "
        "untrained weights are kept. A lower --learning-rate or more --steps may gain where this lost"
    )
    return start, before, before.map


def measure_dense(task: PruningTask) -> Metrics:
    """The dense detector's scores on the whole validation split."""
    return evaluate(task.model, task.val, task.device, batch_size=task.config.batch_size)


def _latency(task: PruningTask, model: nn.Module) -> dict[str, Any]:
    """A row of `latency.json`: the recovered detector in the run's runtime, in turns with the dense one."""
    runtime, threads, models = task.config.latency_runtime, task.config.threads, (task.model, model)
    dense, pruned = measure_networks(models, task.input_size, runtime, task.device, threads, LATENCY_PASSES)
    where = label(runtime, task.device, threads, 1, task.input_size)
    return {"label": where, **asdict(pruned), "dense_ms": dense.median_ms}


def _regrown(
    task: PruningTask, space: Space | None, keep: Mapping[str, Sequence[int]], what: str
) -> Mapping[str, Sequence[int]]:
    """The policy after regrowth, the same on all processes.

    Raises:
        ConfigError: there is no space.
    """
    if space is None:
        raise ConfigError("regrow_rounds needs the search space; give one, or set it to 0")
    found = ranks.broadcast_object(regrow(task, space, keep, task.config.regrow_rounds))
    groups = {name: range(task.graph.groups[name].width) for name in {*keep, *found}}
    new = sum(len({*found.get(name, whole)} - {*keep.get(name, whole)}) for name, whole in groups.items())
    say(f"{what}: {new} removed channels took the place of others")
    return found


def _finished(folder: Path, asked: Mapping[str, Any]) -> Recovered | None:
    """What an earlier call made, where it was asked for the same.

    Raises:
        RunError: it was asked for something else.
    """
    file = folder / METRICS_FILE
    if not file.is_file():
        return None
    metrics = json.loads(file.read_text(encoding="utf-8"))
    differing = [name for name in asked if metrics["settings"].get(name) != asked[name]]
    if differing:
        name = differing[0]
        raise RunError(
            f"{folder} was recovered with other settings: {name} was {metrics['settings'].get(name)}, now "
            f"{asked[name]}; delete the folder to recover it anew"
        )
    return Recovered(folder, Policy.load(folder / POLICY_FILE), metrics)


def _best(result: SearchResult) -> list[int]:
    """The trial on the front with the highest mAP.

    Raises:
        RunError: the front is empty.
    """
    if result.best is None:
        reasons = f": {result.failed[0].reason}" if result.failed else ""
        raise RunError(
            f"{result.run} has nothing on its front yet{reasons}; let the search finish some trials"
        )
    return [result.best.trial]
