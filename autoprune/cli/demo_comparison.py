"""The comparison of `autoprune demo`: which trials it shows, and what they score on unseen images."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autoprune.config import Config
from autoprune.data import demo_detector
from autoprune.report.entries import kind_of
from autoprune.report.tables import Kind
from autoprune.run.names import POLICY_FILE, TRIAL_NAME
from autoprune.study.trials import origin_label

if TYPE_CHECKING:
    import torch
    from torch import nn

    from autoprune.data.coco import Split
    from autoprune.data.evaluate import Metrics
    from autoprune.run.results import SearchResult
    from autoprune.study.records import Record

COMPARED: tuple[Kind, ...] = ("uniform", "one-shot", "searched")
UNTRAINED_FOLDER = "untrained"
LATENCY_PASSES = 10


@dataclass(frozen=True)
class Compared:
    """One trial in the comparison: the best of its kind at a budget, by its proxy mAP.

    Attributes:
        trial: its number.
        kind: uniform, one-shot or searched.
        origin: the warm start's name, or ``searched``.
        budget: GFLOPs it was projected onto.
        is_best: no other trial of the budget has a higher proxy mAP; this one is recovered.
    """

    trial: int
    kind: Kind
    origin: str
    budget: float
    is_best: bool


@dataclass(frozen=True)
class Measured:
    """A detector on the test images.

    Attributes:
        scores: with the mAP on resampled images.
        gflops: billions of multiply-adds of one image.
        mparams: millions of parameters.
        latency_ms: median time of one image.
    """

    scores: "Metrics"
    gflops: float
    mparams: float
    latency_ms: float


@dataclass(frozen=True)
class Comparison:
    """Everything measured on the test images.

    Attributes:
        dense: the dense detector.
        sibling: its smaller sibling.
        untrained: the compared trials, reconstructed without any training, by number.
        recovered: those that were recovered, by number.
        sibling_val_map: the sibling's mAP on the images that trials are measured on, for the picture.
    """

    dense: Measured
    sibling: Measured
    untrained: Mapping[int, Measured]
    recovered: Mapping[int, Measured]
    sibling_val_map: float


def sibling_gflops() -> float:
    """The GFLOPs of the smaller sibling, for one of the demo's images."""
    from autoprune.detectors import build, detector_inputs
    from autoprune.graph import count

    size = (demo_detector.IMAGE_SIZE, demo_detector.IMAGE_SIZE)
    return count(build(demo_detector.SIBLING), detector_inputs(size)).gflops


def choose(result: "SearchResult") -> list[Compared]:
    """The best uniform, one-shot and searched trial of each budget, the largest budget first."""
    complete = [r for r in result.records if r.counts and r.state == "complete" and r.budget is not None]
    chosen = []
    for budget in sorted({record.budget or 0.0 for record in complete}, reverse=True):
        trials = [record for record in complete if record.budget == budget]
        best = max(trials, key=_proxy)
        for kind in COMPARED:
            if of_kind := [record for record in trials if kind_of(record.origin) == kind]:
                record = max(of_kind, key=_proxy)
                is_best = record.number == best.number
                chosen.append(
                    Compared(record.number, kind, origin_label(record.origin), budget, is_best=is_best)
                )
    return chosen


def save_untrained(run: Path, trials: Sequence[int]) -> dict[int, Path]:
    """Writes detectors of a run as its trials measured them: pruned and reconstructed, not trained.

    Folders that exist already are not written again.

    Args:
        run: the run directory of a search whose only rung is 0.
        trials: their numbers.

    Returns:
        The folder of each; `autoprune.load` reads it.
    """
    from autoprune.export import save_detector
    from autoprune.graph import prune
    from autoprune.progress import track
    from autoprune.run.directory import RunDirectory
    from autoprune.run.results import load_result
    from autoprune.seeding import seed
    from autoprune.space.file import SpaceFile
    from autoprune.space.resolve import resolve
    from autoprune.task.evaluator import PolicyEvaluator
    from autoprune.task.pruning_task import load_task
    from autoprune.task.scoring import score_channels
    from autoprune.task.training_start import reinitialize

    folders = {trial: run / UNTRAINED_FOLDER / TRIAL_NAME.format(trial) for trial in trials}
    missing = [trial for trial, folder in folders.items() if not (folder / POLICY_FILE).is_file()]
    if not missing:
        return folders
    directory = RunDirectory(run)
    task = load_task(directory.config())
    importance = score_channels(task, task.config.criterion, directory.importance_file)
    space = resolve(SpaceFile.load(directory.space_file), task.graph, importance)
    evaluator = PolicyEvaluator(task, space, importance)
    widths = {record.number: record.widths for record in load_result(run).records}
    for trial in track(missing, "reconstruction"):
        keep = evaluator.keep(widths[trial])
        pruned = prune(task.model, task.graph, keep)
        model = reinitialize(task, pruned, keep, seed(task.config.seed, "proxy", 0))
        save_detector(folders[trial], model, task.policy(keep, task.costs(keep)))
    return folders


def compare(config: Config, untrained: Mapping[int, Path], recovered: Mapping[int, Path]) -> Comparison:
    """Measures the dense detector, its smaller sibling and the files of trials on the test images.

    Args:
        config: of the search.
        untrained: folders by trial.
        recovered: folders by trial.
    """
    from autoprune.data.coco import open_data
    from autoprune.data.evaluate import evaluate
    from autoprune.detectors import load_dense, pixel_resizing
    from autoprune.export import load
    from autoprune.task.checks import pick_device

    device = pick_device(config)
    dense, _ = load_dense(config.model, config.model_arguments, weights=config.weights)
    small = demo_detector.SIBLING
    sibling, _ = load_dense(small.name, small.arguments, weights=str(demo_detector.SIBLING_WEIGHTS))
    models: dict[tuple[str, int], nn.Module] = {("dense", 0): dense, ("sibling", 0): sibling}
    models |= {("untrained", trial): load(folder) for trial, folder in untrained.items()}
    models |= {("recovered", trial): load(folder) for trial, folder in recovered.items()}
    models = {key: model.to(device) for key, model in models.items()}
    test = open_data(config.data, "test", pixel_resizing(dense))
    measured = dict(_measure(models, test, device))
    val = open_data(config.data, "val", pixel_resizing(dense))
    return Comparison(
        measured["dense", 0],
        measured["sibling", 0],
        {trial: measured["untrained", trial] for trial in untrained},
        {trial: measured["recovered", trial] for trial in recovered},
        evaluate(models["sibling", 0], val, device, images=config.proxy_images).map,
    )


def _measure(
    models: "Mapping[tuple[str, int], nn.Module]", test: "Split", device: "torch.device"
) -> "Iterator[tuple[tuple[str, int], Measured]]":
    from autoprune.data.evaluate import evaluate
    from autoprune.detectors import detector_inputs
    from autoprune.graph import count
    from autoprune.latency.timing import measure

    size = test.most_common_size
    named = {f"{kind} {trial}": model for (kind, trial), model in models.items()}
    latencies = measure(named, detector_inputs(size, device), repeats=LATENCY_PASSES, device=device)
    for (kind, trial), model in models.items():
        costs = count(model, detector_inputs(size, device))
        scores = evaluate(model, test, device, error=True)
        latency_ms = latencies[f"{kind} {trial}"].median_ms
        yield (kind, trial), Measured(scores, *costs, latency_ms)


def _proxy(record: "Record") -> float:
    return record.metrics["map"]
