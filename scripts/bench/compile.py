r"""Whether `torch.compile` pays in a recovery: what compiling costs, and what it saves at each step.

    python scripts/bench/compile.py --out runs/bench-compile

Backbone and head of the demo's detector, or of the one that --data and others name, are compiled; transform,
anchors and losses stay as they are, since their shapes follow the boxes. CPU seconds of forward, backward and
AdamW, with those of the compiler's processes; the last line says after how many steps compiling has paid, and
whether images of another size need another compilation.
"""

import argparse
import copy
import os
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from learning_rates import config_of
from parts import add_demo_or_data
from torch import nn

from autoprune.task.pruning_task import load_task


def main() -> None:
    """Measures and prints."""
    given = arguments()
    torch.set_num_threads(given.threads)
    task = load_task(config_of(given))
    eager, compiled = copy.deepcopy(task.model), copy.deepcopy(task.model)
    for name in ("backbone", "head"):
        compiled.get_submodule(name).compile(dynamic=given.dynamic)
    images, targets = task.train.batch(range(given.batch_size))
    steps = {name: step(model, images, targets) for name, model in (("eager", eager), ("compiled", compiled))}
    first = {name: cpu_seconds(work) for name, work in steps.items()}
    spent: dict[str, list[float]] = {"eager": [], "compiled": []}
    for _ in range(given.steps):
        for name, work in steps.items():
            spent[name].append(cpu_seconds(work))
    each = {name: median(values) for name, values in spent.items()}
    cost, saved = first["compiled"] - each["compiled"], each["eager"] - each["compiled"]
    print(f"a step: {each['eager']:.3f} CPU s eager, {each['compiled']:.3f} compiled")
    pays = f"pays after {cost / saved:.0f} steps" if saved > 0 else "never pays"
    print(
        f"compiling: {cost:.1f} CPU s, ratio of the steps {each['eager'] / each['compiled']:.2f}; it {pays}"
    )
    smaller = [image[:, : image.shape[1] * 3 // 4] for image in images]
    box = {"boxes": torch.tensor([[1.0, 1, 20, 20]]), "labels": torch.tensor([1])}
    other = step(compiled, smaller, [box] * len(smaller))
    print(f"the first step at another height: {cpu_seconds(other):.1f} CPU s")


def step(model: nn.Module, images: Any, targets: Any) -> Callable[[], None]:
    """Forward, backward and AdamW on one batch."""
    model.to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.AdamW([w for w in model.parameters() if w.requires_grad], lr=1e-5, fused=True)

    def work() -> None:
        optimizer.zero_grad()
        total: Any = sum(model(images, targets).values())
        total.backward()
        optimizer.step()

    return work


def cpu_seconds(work: Callable[[], None]) -> float:
    """CPU seconds of this process and of those that it started and that have ended."""
    start = time.process_time(), os.times()
    work()
    end = os.times()
    children = end.children_user + end.children_system - start[1].children_user - start[1].children_system
    return time.process_time() - start[0] + children


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_or_data(parser)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dynamic", action="store_true", default=None, help="shapes that may change")
    parser.add_argument("--out", type=Path, required=True)
    parser.set_defaults(seed=0, distill=0.0, clip_norm=1.0)
    return parser.parse_args()


if __name__ == "__main__":
    main()
