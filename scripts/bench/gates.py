r"""Gate gradients: the time of an image, by gradients of the weights and by gates at the inputs of layers.

Without --data it is the demo's detector on generated images.

    python scripts/bench/gates.py --out runs/bench-gates
    python scripts/bench/gates.py --data DATA --weights WEIGHTS --model retinanet_resnet18_fpn \
        --model-arguments '{"min_size": 192, "max_size": 256}' --out runs/bench-gates

A row for each way: how much faster it is, CPU seconds of an image, and the largest difference to the first,
as a fraction of the largest gradient of the group. Version 0.1.0 had only the first. Ways take
turns, batch after batch, so that a busy machine slows them alike. The last row is what no exact way beats:
the losses of the batch and their gradient with respect to the images, with no gradient of a weight or a gate.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from learning_rates import config_of
from parts import add_demo_or_data
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from autoprune.importance.gates import _ByInputs, _ByWeights
from autoprune.importance.reduce import Importance
from autoprune.modules.losses import losses_of
from autoprune.modules.run_modes import loss_mode_copy
from autoprune.task.pruning_task import load_task

BARE = "bare backward, all at once"


def main() -> None:
    """Measures all ways and prints the table."""
    given = arguments()
    torch.set_num_threads(given.threads)
    task = load_task(config_of(given))
    by_weights, by_inputs = _ByWeights(task.model, task.graph, {}), _ByInputs.of(task.model, task.graph, {})
    if by_inputs is None:
        raise SystemExit(f"{given.model}: a group is read by other layers than convolutions and linear ones")
    size = given.batch
    ways: dict[str, tuple[Any, int]] = {
        "weights": (by_weights, 1),
        "inputs": (by_inputs, 1),
        f"inputs, {size} at once": (by_inputs, size),
    }
    seconds = dict.fromkeys([*ways, BARE], 0.0)
    results: dict[str, list[Importance]] = {name: [] for name in ways}
    frozen = loss_mode_copy(task.model).requires_grad_(False)
    for start in range(0, given.images + size, size):  # the first batch warms up
        images, targets = task.train.batch(range(max(0, start - size), max(size, start)), task.device)
        for name, (way, count) in ways.items():
            before = time.process_time()
            gates: list[Importance] = []
            for at in range(0, size, count):
                gates += way(images[at : at + count], targets[at : at + count])
            if start:
                seconds[name] += time.process_time() - before
                results[name] += gates
        before = time.process_time()
        bare_backward(frozen, images, targets)
        if start:
            seconds[BARE] += time.process_time() - before
    table = Table(title=f"{given.images} images of {task.input_size[0]}x{task.input_size[1]}")
    for column in ("gates", "ratio", "CPU s an image", "max difference"):
        table.add_column(column, justify="left" if column == "gates" else "right")
    for name, spent in seconds.items():
        differing = f"{difference(results['weights'], results[name]):.1e}" if name in ways else ""
        table.add_row(name, f"{seconds['weights'] / spent:.2f}", f"{spent / given.images:.3f}", differing)
    Console().print(table)


def bare_backward(model: nn.Module, images: list[Tensor], targets: list[dict[str, Any]]) -> None:
    """The losses of a batch and their gradients with respect to its images."""
    inputs = [image.clone().requires_grad_() for image in images]
    torch.autograd.grad(torch.stack(list(losses_of(model, inputs, targets).values())).sum(), inputs)


def difference(first: list[Importance], second: list[Importance]) -> float:
    """The largest difference over images and groups, as a fraction of the largest gradient of the group."""
    return max(
        float(np.abs(values - other[name]).max() / (np.abs(values).max() or 1.0))
        for one, other in zip(first, second, strict=True)
        for name, values in one.items()
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_or_data(parser)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    given.seed, given.distill, given.clip_norm = 0, 1.0, 1.0
    return given


if __name__ == "__main__":
    main()
