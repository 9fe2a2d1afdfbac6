r"""Which channels go, and how many of each group: mAP after reconstruction, by criterion and method.

Without --data it is the demo's detector on generated images. Each policy is one file in --out, so what was
stopped is resumed.

    python scripts/bench/criteria.py --out runs/bench-criteria
    python scripts/bench/criteria.py --data DATA --weights WEIGHTS --model retinanet_resnet18_fpn \
        --model-arguments '{"min_size": 192, "max_size": 256}' --budgets 33%,10%,6% --out runs/bench-mine
"""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from learning_rates import config_of
from parts import add_demo_or_data, guard, once, score_val
from rich.console import Console
from rich.table import Table

from autoprune.cost.budget import Budget, parse_budget
from autoprune.graph import prune
from autoprune.importance import CURVES, Importance
from autoprune.search.curves import score_curves
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.one_shot import greedy, knapsack, uniform
from autoprune.space.resolve import resolve
from autoprune.space.space import Space
from autoprune.space.warm_start import WarmStart
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.task.scoring import score_channels
from autoprune.task.training_start import reinitialize

LARGEST_RATIO = 0.95

Make = Callable[[Space, dict[str, Importance], Budget], WarmStart]
# Each: the criterion by which channels go, and how many of each group.
METHODS: dict[str, tuple[str, Make]] = {
    "uniform, by l2": ("l2", lambda space, scores, bound: uniform(space, [bound])),
    "uniform, by taylor": ("taylor", lambda space, scores, bound: uniform(space, [bound])),
    "uniform, by obs": ("obs", lambda space, scores, bound: uniform(space, [bound])),
    "global taylor": (
        "taylor",
        lambda space, scores, bound: greedy(space, scores["taylor"], [bound], "taylor", per_cost=False),
    ),
    "greedy fisher": (
        "fisher",
        lambda space, scores, bound: greedy(space, scores["fisher"], [bound], "fisher"),
    ),
    "knapsack joint": (
        "joint",
        lambda space, scores, bound: knapsack(space, scores["joint"], [bound], "joint"),
    ),
    "greedy obs": ("obs", lambda space, scores, bound: greedy(space, scores["obs"], [bound], "obs")),
    "knapsack obs": ("obs", lambda space, scores, bound: knapsack(space, scores["obs"], [bound], "obs")),
    "greedy curves, by obs": (
        "obs",
        lambda space, scores, bound: greedy(space, scores[CURVES], [bound], CURVES),
    ),
}
CRITERIA = ("obs", "joint", "taylor", "fisher", "l2")


def main() -> None:
    """Measures each method at each budget and seed, and prints the table."""
    given = arguments()
    varied = ("out", "budgets", "seeds", "curves")
    guard(given.out / "settings.json", {k: str(v) for k, v in vars(given).items() if k not in varied})
    given.seed, given.distill, given.clip_norm = 0, 1.0, 1.0
    task = load_task(config_of(given))
    file = given.out / "scores.safetensors"
    scores = {name: score_channels(task, name, file) for name in CRITERIA}
    methods = dict(METHODS)
    if given.curves:
        scores[CURVES] = score_curves(task, scores["obs"], given.out / "curves.json", empty=False)
    else:
        del methods["greedy curves, by obs"]
    budgets = given.budgets.split(",")
    table = Table(
        "mAP after reconstruction", *budgets, title=f"dense {100 * score_val(task, task.model):.1f}"
    )
    for method in methods:
        cells = []
        for budget in budgets:
            maps = [
                once(
                    given.out / f"{method}-{budget}-{seed}.json",
                    partial(measure, task, scores, method, budget, seed),
                )["map"]
                for seed in range(given.seeds)
            ]
            cells.append(f"{100 * sum(maps) / len(maps):.1f}")
        table.add_row(method, *cells)
    Console().print(table)


def measure(
    task: PruningTask, scores: dict[str, Importance], method: str, budget: str, seed: int
) -> dict[str, Any]:
    """Prunes and reconstructs a method's policy, on the images and positions of the seed."""
    criterion, make = METHODS[method]
    file = SpaceFile(
        model=task.spec.name,
        model_arguments=task.spec.arguments,
        input_size=task.input_size,
        groups=(GroupRule(match="*", max_ratio=LARGEST_RATIO),),
    )
    space = resolve(file, task.graph, scores[criterion])
    start = make(space, scores, parse_budget(budget, "gflops", task.graph.gflops()))
    keep = space.keep(space.as_array(start.widths or {}))
    model = reinitialize(task, prune(task.model, task.graph, keep), keep, seed)
    return {"map": score_val(task, model), **task.costs(keep)}


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_or_data(parser)
    parser.add_argument("--budgets", default="50%,33%,20%,12%")
    parser.add_argument("--seeds", type=int, default=2, help="of the reconstruction's images: 0, 1, …")
    parser.add_argument("--curves", action="store_true", help="also measure sensitivity curves")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
