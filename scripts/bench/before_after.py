"""Evaluation, training and importance, before and after, in one table of one run.

    python scripts/bench/before_after.py --before CHECKOUT --out runs/bench-before-after

The versions take turns, each in a process of its own; figures are medians over the rounds, ratios first. The
demo's detector and generated images. Rows:

- `evaluate`: CPU seconds of `evaluate` with the standard error of mAP, on images with a hundred detections
  each, which a detector returns that computes nothing: harness, matches, COCOeval and bootstrap.
- `step / bare`, `slow decode / none` and `waits`: see `training.py`.
- `gate gradients`: CPU seconds of an image, as `fisher` scores it.
"""

import json
import statistics
import time
from pathlib import Path
from typing import Any

import torch
from learning_rates import config_of
from parts import changed
from rich.console import Console
from rich.table import Table
from torch import nn
from training import CPU, arguments, measure_in, slow_decoding, step_costs, waits

from autoprune.data.coco import open_data
from autoprune.data.evaluate import evaluate
from autoprune.data.shapes import make_shapes
from autoprune.detectors import pixel_resizing
from autoprune.importance.gradients import fisher, score_by_gates
from autoprune.task.pruning_task import PruningTask, load_task

IMAGES, SIZE, DETECTIONS, CLASSES, SCORED = 2000, 64, 100, 5, 32
"""Evaluated images, their pixels, the detections of each, and classes; images that channels are scored on."""


def main() -> None:
    """Measures this version, or both in a process each, and prints the table."""
    given = arguments(__doc__, with_parts=False)
    if given.one:
        print(json.dumps(measure(given)))
        return
    if not given.before:
        raise SystemExit("name the checkout of the version before with --before")
    versions = {"before": given.before, "after": Path(__file__).parents[2]}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for _ in range(given.rounds):
        for name, checkout in versions.items():
            results[name].append(measure_in(checkout, Path(__file__)))
    table = Table("", "ratio", *versions, title=f"medians of {given.rounds} rounds")
    for row in results["after"][0]:
        before, after = (statistics.median(each[row] for each in results[name]) for name in versions)
        table.add_row(row, f"{before / after:.2f}", f"{before:.3f}", f"{after:.3f}")
    Console().print(table)


def measure(given: Any) -> dict[str, float]:
    """All rows of the version that is imported."""
    torch.set_num_threads(given.threads)
    task = load_task(config_of(given))
    rows = {f"evaluate {IMAGES} images, CPU s": evaluation(task, given.out)}
    rows |= step_costs(task, given) | slow_decoding(task, given) | waits(task, given)
    return rows | {"gate gradients, CPU s an image": importance(task)}


class Ready(nn.Module):
    """A detector whose detections are ready: some near the shapes, most anywhere."""

    def __init__(self, boxes: list[torch.Tensor], classes: int) -> None:
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.next, self.results = 0, []
        for true in boxes:
            corner = torch.rand(DETECTIONS, 2, generator=draw) * SIZE * 0.7
            sides = 4 + torch.rand(DETECTIONS, 2, generator=draw) * SIZE * 0.3
            detected = torch.cat([corner, corner + sides], 1)
            near = true[torch.randint(len(true), (DETECTIONS // 3,), generator=draw)] if len(true) else true
            detected[: len(near)] = near + torch.randn(near.shape, generator=draw)
            self.results.append({
                "boxes": detected.clamp(0, SIZE),
                "scores": torch.rand(DETECTIONS, generator=draw),
                "labels": torch.randint(1, classes + 1, (DETECTIONS,), generator=draw),
            })  # fmt: skip

    def forward(self, images: list[torch.Tensor]) -> list[dict[str, torch.Tensor]]:
        """Those of the next images."""
        self.next += len(images)
        return self.results[self.next - len(images) : self.next]


def evaluation(task: PruningTask, out: Path) -> float:
    """CPU seconds of an evaluation with its standard error; the images are decoded before."""
    folder = make_shapes(out / "evaluated", 0, train=1, val=IMAGES, size=SIZE)
    data = open_data(changed(task.config, data=str(folder)).data, "val", pixel_resizing(task.model))
    boxes = [data.batch([index], CPU)[1][0]["boxes"] for index in range(len(data))]
    model = Ready(boxes, CLASSES)
    start = time.process_time()
    evaluate(model, data, error=True)
    return time.process_time() - start


def importance(task: PruningTask) -> float:
    """CPU seconds of an image that channels are scored on."""
    batches = [task.train.batch(range(at, at + 8), CPU) for at in range(0, SCORED, 8)]
    start = time.process_time()
    score_by_gates({"fisher": fisher}, task.model, task.graph, lambda: batches, 0)
    return (time.process_time() - start) / SCORED


if __name__ == "__main__":
    main()
