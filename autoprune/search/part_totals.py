"""The parts of a search's time from what its trials do and what each piece of work costs."""

from collections.abc import Sequence

import numpy as np

from autoprune.data.coco import Split
from autoprune.search.estimate import Part, TrialCosts, add, times
from autoprune.study.records import Record
from autoprune.task.pruning_task import PruningTask

BYTES = 3  # of a pixel in memory


def trial_parts(task: PruningTask, records: Sequence[Record], costs: TrialCosts) -> list[Part]:
    """What the trials do, and what re-evaluating the top candidates does."""
    config, images = task.config, task.proxy_images
    trials: dict[str, float] = {"reconstruction": costs.reconstructor_s}
    again: dict[str, float] = {}
    for record in records:
        for rung in range(len(record.rungs)):
            seconds = costs.of_rung(record.metrics["gflops"], config.rungs, rung, images)
            add(trials if record.repeat_of is None else again, seconds)
        if record.repeat_of is not None:
            add(again, {"reconstruction": costs.reconstructor_s})
    firsts = [record for record in records if record.repeat_of is None and record.rungs]
    steps = sum(config.rungs[len(record.rungs) - 1] for record in firsts)
    evaluated = images * sum(len(record.rungs) for record in firsts)
    first = times(len(firsts), trials["reconstruction"])
    repeats = sum(record.repeat_of is not None for record in records)
    training, evaluation = trials.get("training", 0.0), trials.get("evaluation", 0.0)
    return [
        Part("reconstruction", first, trials["reconstruction"], "--reconstruct-images", True),
        Part("training", times(steps, training), training, "--rungs or --trials", True),
        Part("evaluation", times(evaluated, evaluation), evaluation, "--proxy-images", True),
        Part("re-evaluation", times(repeats, sum(again.values())), sum(again.values()), "--confirm", True),
    ]


def decoding(task: PruningTask, records: Sequence[Record], seconds: float) -> Part:
    """Decoding: each image once where all fit in memory, else at each use of those that do not."""
    config = task.config
    rungs = [len(record.rungs) for record in records]
    steps = sum(config.rungs[count - 1] for count in rungs if count)
    uses = {
        "train": config.importance_images + config.reconstruct_images + steps * config.batch_size,
        "val": task.proxy_images * (1 + sum(rungs)),
    }
    once = {
        "train": min(
            len(task.train),
            config.importance_images + config.reconstruct_images + config.rungs[-1] * config.batch_size,
        ),
        "val": task.proxy_images,
    }
    needed = once["train"] * _bytes(task.train) + once["val"] * _bytes(task.val)
    fits = min(1.0, config.image_cache_gib * 2**30 / max(needed, 1))
    count = sum(once[split] * fits + uses[split] * (1 - fits) for split in once)
    lower = "--image-cache-gib (more)" if fits < 1 else "--proxy-images"
    return Part("decoding", times(count, count * seconds), count * seconds, lower, True)


def _bytes(split: Split) -> float:
    """Mean size of an image in memory."""
    return BYTES * float(np.mean([height * width for height, width in split.sizes]))


def proxy_check(task: PruningTask, records: Sequence[Record], costs: TrialCosts) -> Part:
    """Recovering trials in full, one after the other."""
    config = task.config
    gflops = float(np.mean([record.metrics["gflops"] for record in records if record.rungs]))
    images = 2 * len(task.val)  # before the training and after it
    each = costs.training(gflops) + config.steps * costs.step(gflops) + images * costs.image(gflops)
    count = config.check_proxies
    if not config.rungs[-1]:  # no step was timed
        return Part("check of the proxies", "not timed, as no rung trains", 0.0, "--check-proxies")
    return Part("check of the proxies", times(count, count * each), count * each, "--check-proxies")
