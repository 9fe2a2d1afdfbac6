"""Full recovery of one policy: reconstruct, train with the dense detector as teacher, write the better."""

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from autoprune.config import DataPaths
from autoprune.data.evaluate import Metrics, evaluate
from autoprune.data.samples import save_samples
from autoprune.errors import ConfigError
from autoprune.export import save_detector
from autoprune.export.card import add_latencies, write_card
from autoprune.files import write_text
from autoprune.graph import prune
from autoprune.importance import Importance
from autoprune.latency.machine import versions
from autoprune.latency.networks import latency_row, measure_networks
from autoprune.policy import hash_weights
from autoprune.progress import say
from autoprune.recovery.expect import Pair, expecting, say_expected
from autoprune.recovery.finished import Recovered, identify, read_finished
from autoprune.recovery.regrow import regrow
from autoprune.run import names
from autoprune.run.lock import locked
from autoprune.seeding import seed as derive
from autoprune.space.space import Space
from autoprune.task.learning_rate import recovery_rate
from autoprune.task.pruning_task import PruningTask
from autoprune.task.training_start import make_teacher, reinitialize
from autoprune.training import TrainSettings, distributed, train
from autoprune.training.checkpoint import recorded_run

LATENCY_PASSES = 10


class Better(NamedTuple):
    """The better of a detector before and after its training.

    Attributes:
        model: that detector.
        scores: its scores on the validation split.
        untrained_map: mAP before the training.
        trained: whether ``model`` is the trained one.
    """

    model: nn.Module
    scores: Metrics
    untrained_map: float
    trained: bool


def recover_policy(
    task: PruningTask,
    keep: Mapping[str, Sequence[int]],
    folder: Path,
    importance: Importance | None = None,
    measure_dense: Callable[[], Metrics] | None = None,
    label: str = "recovery",
    notes: Mapping[str, Any] | None = None,
    space: Space | None = None,
    full_size: PruningTask | None = None,
) -> Recovered:
    """Recovers one policy with the settings of ``task.config`` and writes it to a folder.

    What is written is the better, on the validation split, of the trained detector and the one before the
    training: where a policy lost little, a short training can cost more than it gains.

    A call that was killed resumes from its checkpoint; a finished one is read back. Two policies that are
    recovered with the same settings see the same images in the same order.

    Args:
        task: dense detector and data, at the input size of the policy.
        keep: {group: kept channels} of each pruned group.
        folder: where the result goes.
        importance: {group: [width]}, scores that weight the channels in the distillation; ``None`` weights
            all equally.
        measure_dense: gives the dense detector's scores, to be written beside the result's.
        label: name of the work, for progress.
        notes: more to keep in `metrics.json`.
        space: the search space, whose steps and smallest widths regrowth respects.
        full_size: the task at the detector's own input size, to which the result is compared; ``None``
            where that is ``task``.

    Raises:
        ConfigError: ``regrow_rounds`` is given and the space is not.
        RunError: the folder holds another policy, was made with other settings, or is in use by another
            process.
        TrainingError: a loss is not finite.
    """
    full_size = full_size or task
    seed = derive(task.config.seed, "recovery")
    settings = TrainSettings.from_config(task.config, seed=seed)
    identity = identify(task, settings, keep)
    if (finished := read_finished(folder, identity, label)) is not None:
        say(f"{label}: already finished, in {folder}")
        if distributed.rank() == 0:
            _finish(folder)
        return replace(finished, metrics={**(notes or {}), **finished.metrics})
    with distributed.first_only(locked(folder, names.LOCK_FILE)):
        if distributed.rank() == 0:
            for name in (names.METRICS_FILE, names.CARD_FILE):  # of a recovery that is done again
                (folder / name).unlink(missing_ok=True)
        started = time.perf_counter()
        if task.config.regrow_rounds:
            keep = _regrow(task, space, keep, label)
        start = reinitialize(task, prune(task.model, task.graph, keep), keep, settings.seed).to(task.device)
        checkpoint = folder / names.RECOVERY_CHECKPOINT_FILE
        begun = _begun(checkpoint, identity)
        before, dense_map, rate = _measure_start(task, full_size, start, measure_dense, begun.learning_rate)
        teacher = make_teacher(task, keep, importance)
        settings = replace(settings, learning_rate=rate)
        watch = None
        if full_size is task and dense_map is not None:
            tell = partial(say_expected, label, settings)
            watch = expecting(task, start, Pair(dense_map, before.map), settings, tell)
        result = train(
            start,
            task.train,
            settings,
            task.device,
            teacher,
            checkpoint,
            label,
            watch,
            start_id=begun.start_id,
        )
        trained = time.perf_counter()
        if distributed.rank() > 0:
            return _read_from_first_rank(folder, identity)
        better = _better(task, start, before, result.model, label)
        dense = None if measure_dense is None else measure_dense()
        costs = task.costs(keep)
        policy = task.policy(keep, {"map": better.scores.map, "map50": better.scores.map50, **costs})
        metrics = {
            **(notes or {}),
            "data": _data_name(task),
            "versions": versions(task.spec.name),
            "input_size": list(task.input_size),
            **better.scores.to_dict(),
            **costs,
            "dense": _dense_entry(full_size, dense),
            "untrained_map": better.untrained_map,
            "kept": "trained" if better.trained else "untrained",
            "learning_rate": rate,
            "training_s": round(trained - started, 3),
            "evaluation_s": round(time.perf_counter() - trained, 3),
            "model_sha256": hash_weights(better.model.state_dict()),
            "settings": identity,
        }
        recovered = Recovered(folder, policy, metrics)
        _write(task, full_size, recovered, better.model, result.losses)
        distributed.barrier()
        say(f"{label}: mAP {100 * recovered.map:.1f}, {costs['gflops']:.2f} GFLOPs, in {folder}")
        return recovered


def _read_from_first_rank(folder: Path, identity: Mapping[str, Any]) -> Recovered:
    """What the first process of `torchrun` wrote."""
    distributed.barrier()
    finished = read_finished(folder, identity)
    assert finished is not None
    return finished


class _Begun(NamedTuple):
    """What a recovery takes from the checkpoint that it resumes from, if there is one.

    Attributes:
        start_id: by what the checkpoint knows the weights before the training; see `train`.
        learning_rate: that of the training so far; ``None`` where there is none.
    """

    start_id: str | None
    learning_rate: float | None


def _begun(checkpoint: Path, identity: Mapping[str, Any]) -> _Begun:
    """Tells a training that was begun from the same policy, data and settings, on whatever machine.

    Reconstruction and mAP differ in the last digits between machines, and between numbers of threads; so the
    weights before the training are known by what they are made from, and the learning rate stays. Regrowth
    may choose other channels, and checkpoints of earlier versions hold a hash of the weights: both resume
    where the weights are the same.

    Raises:
        RunError: the checkpoint can't be read.
    """
    start_id = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    if not (recorded := recorded_run(checkpoint)):
        return _Begun(None if identity["regrow_rounds"] else start_id, None)
    known = recorded.get("start weights") == start_id
    return _Begun(start_id if known else None, recorded.get("learning_rate"))


def _dense_entry(full_size: PruningTask, scores: Metrics | None) -> dict[str, Any] | None:
    """What `metrics.json` says of the dense detector, at its own input size."""
    if scores is None:
        return None
    return {**scores.to_dict(), **full_size.costs({}), "input_size": list(full_size.input_size)}


def _measure_start(
    task: PruningTask,
    full_size: PruningTask,
    start: nn.Module,
    measure_dense: Callable[[], Metrics] | None,
    begun_rate: float | None,
) -> tuple[Metrics, float | None, float]:
    """The scores before the training, the dense mAP where it is known, and the learning rate.

    Where neither the settings nor a training that was begun has a rate, it follows from what was lost against
    the dense detector at the policy's own input size, and from what that lost by the size.
    """
    score = partial(evaluate, device=task.device, batch_size=task.config.batch_size)
    before, rate = score(start, task.val), task.config.learning_rate or begun_rate
    if measure_dense is None and rate is None:
        measure_dense = partial(score, full_size.model, full_size.val)
    dense_map = None if measure_dense is None else measure_dense().map
    if rate is None:
        assert dense_map is not None
        at_size = dense_map if task is full_size else score(task.model, task.val).map
        rate = recovery_rate(before.map, at_size, dense_map)
    return before, dense_map, distributed.broadcast_object(rate)  # devices may differ in the last digits


def _better(task: PruningTask, start: nn.Module, before: Metrics, trained: nn.Module, label: str) -> Better:
    """The better of two detectors on the validation split; the trained one where they are equal."""
    after = evaluate(trained, task.val, task.device, batch_size=task.config.batch_size)
    if after.map >= before.map:
        return Better(trained, after, before.map, trained=True)
    say(
        f"{label}: mAP {100 * before.map:.1f} before the training and {100 * after.map:.1f} after it; the "
        "untrained weights are kept. A lower --learning-rate or more --steps may gain where this lost"
    )
    return Better(start, before, before.map, trained=False)


def _write(
    task: PruningTask,
    full_size: PruningTask,
    recovered: Recovered,
    model: nn.Module,
    losses: Sequence[float],
) -> None:
    """Writes all files of a recovery; `metrics.json` marks it as finished, so the detector comes first."""
    folder = recovered.folder
    save_detector(folder, model, recovered.policy)
    detectors = {"dense": full_size.model, "pruned": model}
    save_samples(folder, detectors, full_size.val, task.device, splits={"pruned": task.val})
    lines = [f"{step},{loss:.6g}\n" for step, loss in enumerate(losses, 1)]
    write_text(folder / names.LOSSES_FILE, "".join(["step,loss\n", *lines]))
    add_latencies(folder, [_latency(full_size, model)])
    write_text(folder / names.METRICS_FILE, json.dumps(recovered.metrics, indent=2) + "\n")
    _finish(folder)


def _finish(folder: Path) -> None:
    """What follows `metrics.json`, also where an earlier call was killed in between."""
    if not (folder / names.CARD_FILE).exists():
        write_card(folder)
    (folder / names.RECOVERY_CHECKPOINT_FILE).unlink(missing_ok=True)


def _latency(full_size: PruningTask, model: nn.Module) -> dict[str, Any]:
    """A row of `latency.json`: the recovered detector, timed interleaved with the dense one.

    Both get an image of the dense detector's input size; each resizes it to its own.
    """
    setup = full_size.latency_setup
    dense, pruned = measure_networks((full_size.model, model), setup, LATENCY_PASSES)
    return latency_row(setup, model, pruned, (full_size.model, dense))


def _data_name(task: PruningTask) -> str:
    data = task.config.data
    return data.val.annotations.name if isinstance(data, DataPaths) else data.name


def _regrow(
    task: PruningTask, space: Space | None, keep: Mapping[str, Sequence[int]], label: str
) -> Mapping[str, Sequence[int]]:
    """The policy after regrowth, the same on all processes.

    Raises:
        ConfigError: there is no space.
    """
    if space is None:
        raise ConfigError("regrow_rounds needs the search space; give one, or set it to 0")
    regrown = distributed.broadcast_object(regrow(task, space, keep, task.config.regrow_rounds))
    groups = {name: range(task.graph.groups[name].width) for name in {*keep, *regrown}}
    new = sum(len({*regrown.get(name, whole)} - {*keep.get(name, whole)}) for name, whole in groups.items())
    say(f"{label}: {new} removed channels replaced kept ones")
    return regrown
