"""Times the parts of a search on this machine, each on a few images and on a few policies."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from autoprune.data.evaluate import evaluate
from autoprune.errors import out_of_memory
from autoprune.graph import prune
from autoprune.importance import Importance
from autoprune.progress import track
from autoprune.run.directory import RunDirectory
from autoprune.search.estimate import Line, TrialCosts
from autoprune.seeding import seed as derive
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import PruningTask
from autoprune.task.scoring import score_several
from autoprune.task.sensitivity import RATIOS, SensitivityProbe, widths_of
from autoprune.task.training_start import make_reconstructor, make_teacher, reinitialize
from autoprune.training import TrainSettings, train
from autoprune.training.state import TrainingState

T = TypeVar("T")
P = ParamSpec("P")

FEW = 8  # images that importance is timed on
DECODED = 4  # images that are decoded to time it
BATCHES = 4  # of validation images that a detector is timed on
STEPS = 3  # of training, the first of which warms up
GROUPS = 3  # whose sensitivity is measured at one width

Keep = Mapping[str, Sequence[int]]


def timed(
    device: torch.device, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> tuple[T, float]:
    """The result of a call and its seconds, until the device has done all of it."""
    _wait(device)
    started = time.perf_counter()
    result = function(*args, **kwargs)
    _wait(device)
    return result, time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_importance(
    task: PruningTask, criteria: Sequence[str], scratch: RunDirectory
) -> tuple[dict[str, Importance], float, float]:
    """Scores of a few images, the seconds that all ``importance_images`` take, and those of the rest.

    What an image costs is what passes between two of them. The rest, such as the eliminations of `obs`, does
    not depend on their number.
    """
    images = min(task.config.importance_images, len(task.train))
    few = min(FEW, images)
    split, calls = copy.copy(task.train), list[tuple[float, list[int]]]()

    def batch(indices: Sequence[int], *args: Any, **kwargs: Any) -> Any:
        _wait(task.device)
        calls.append((time.perf_counter(), list(indices)))
        return task.train.batch(indices, *args, **kwargs)

    vars(split)["batch"] = batch
    batch_size = max(1, few // 4)  # several batches, between which the time is taken
    config = task.config.model_copy(update={"importance_images": few, "batch_size": batch_size})
    scores, seconds = timed(
        task.device,
        score_several,
        replace(task, config=config, train=split),
        criteria,
        scratch.importance_file,
    )
    of_images = min(seconds, per_image(calls) * few)
    return scores, of_images * images / few, seconds - of_images


def per_image(calls: Sequence[tuple[float, Sequence[int]]]) -> float:
    """Seconds of one more image, summed over passes, by when the images of each batch were taken.

    The first batch of a pass warms up, and chooses how to compute; it counts where there is no other.

    Args:
        calls: time and indices of each batch; each pass begins with the same image. None where the
            criteria read no images.
    """
    if not calls:
        return 0.0
    starts = [place for place, (_, indices) in enumerate(calls) if indices[0] == calls[0][1][0]]
    total = 0.0
    for start, end in zip(starts, [*starts[1:], len(calls)], strict=True):
        inside = calls[start:end]
        inside = inside[1:] if len(inside) > 2 else inside
        images = sum(len(indices) for _, indices in inside[:-1])
        total += (inside[-1][0] - inside[0][0]) / images if images else 0.0
    return total


def time_curves(task: PruningTask, order: Importance, empty: bool) -> tuple[float, int]:
    """Seconds of one point of a sensitivity curve, and the number of points of all groups.

    For ``empty`` see `SensitivityProbe`.
    """
    groups = task.graph.prunable
    names = list(groups)
    places = {round(place * (len(names) - 1) / (GROUPS - 1)) for place in range(GROUPS)}
    probe, middle = SensitivityProbe(task, order), (RATIOS[len(RATIOS) // 2],)
    timing = track(sorted(places), "timing sensitivity curves")
    seconds = [timed(task.device, probe, names[place], middle)[1] for place in timing]
    points = sum(len(widths_of(group, empty)) for group in groups.values())
    return sum(seconds) / len(seconds), points


def time_decoding(task: PruningTask) -> float:
    """Seconds to decode one image, beyond taking it from memory."""
    chosen = list(range(len(task.train)))[-DECODED:]
    _, first = timed(task.device, task.train.batch, chosen, task.device)
    _, again = timed(task.device, task.train.batch, chosen, task.device)
    return max(0.0, first - again) / len(chosen)


def time_trials(
    task: PruningTask, evaluator: PolicyEvaluator, policies: Sequence[tuple[float, Keep]]
) -> tuple[TrialCosts, float]:
    """What trials cost, and the seconds of one image of the dense detector, with its standard error.

    Args:
        task: detector and data.
        evaluator: of the trials; it measures the latency.
        policies: GFLOPs and kept channels of those that are pruned, reconstructed, trained and evaluated.
    """
    config, device = task.config, task.device
    seed = derive(config.seed, "proxy", 0)
    images = min(BATCHES * config.batch_size, task.proxy_images)
    on_images = (task.val, device, config.batch_size, images)
    task.val.batch(range(images), device)  # decoding is timed by itself
    lines: dict[str, list[tuple[float, float]]] = {}
    with out_of_memory("timing the parts of a trial", "lower batch_size"):
        _, dense_s = timed(device, evaluate, task.model, *on_images, amp=task.amp, error=True)
        reconstructor, reconstructor_s = None, 0.0
        if config.reconstruct_images:
            reconstructor, reconstructor_s = timed(device, make_reconstructor, task, seed)
        probe = Probe(task)
        if config.rungs[-1]:
            setup_s, step_s = _time_training(task, task.model, {}, evaluator.importance)
            lines = {"training": [(task.graph.gflops(), setup_s)], "step": [(task.graph.gflops(), step_s)]}
        for gflops, keep in policies:
            pruned, prune_s = timed(device, prune, task.model, task.graph, keep)
            start, start_s = timed(device, reinitialize, task, pruned, keep, seed, reconstructor)
            seconds = {"reconstruction": prune_s + start_s}
            _, whole_s = timed(device, evaluate, start, *on_images, amp=task.amp, error=True)
            seconds["image"] = whole_s / images
            if config.rungs[-1]:
                seconds["training"], seconds["step"] = _time_training(task, start, keep, evaluator.importance)
            if len(config.rungs) > 1:
                seconds["probe"] = timed(device, probe, start, keep)[1]
            if evaluator.measures_latency:
                seconds["latency"] = timed(device, evaluator.latency_ms, start)[1]
            for name, each in seconds.items():
                lines.setdefault(name, []).append((gflops, each))

    def line(name: str) -> Line:
        return Line(tuple(lines.get(name, [(0.0, 0.0)])))

    costs = TrialCosts(
        reconstruction=line("reconstruction"),
        reconstructor_s=reconstructor_s,
        training=line("training"),
        step=line("step"),
        image=line("image"),
        probe=line("probe"),
        latency=line("latency"),
    )
    return costs, dense_s / images


def _time_training(
    task: PruningTask, model: nn.Module, keep: Keep, importance: Importance
) -> tuple[float, float]:
    """Seconds of a training but for its steps, and of each of its steps after the first."""
    settings = TrainSettings.from_config(
        task.config, steps=STEPS, seed=derive(task.config.seed, "proxy", 0), learning_rate=1e-9
    )
    ends: list[float] = []

    def after_step(state: TrainingState) -> None:
        _wait(task.device)
        ends.append(time.perf_counter())

    def run() -> None:
        teacher = make_teacher(task, keep, importance)
        train(model, task.train, settings, task.device, teacher, after_step=after_step, what="timed training")

    _, seconds = timed(task.device, run)
    step_s = (ends[-1] - ends[0]) / (len(ends) - 1)
    return max(0.0, seconds - STEPS * step_s), step_s
