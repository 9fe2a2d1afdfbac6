r"""What each way to recover is worth: the same policies, the same number of steps, one thing changed.

At each budget the one-shot policy of the default criterion is pruned, reconstructed and trained in every way
of `recovery_variants.py`. Without --data it is the demo's detector on generated images. Each training is one
file in --out, so what was stopped is resumed.

    python scripts/bench/recoveries.py --seeds 3 --out runs/bench-recoveries
    python scripts/bench/recoveries.py --variants 'features;features, head' --steps 1000 --out runs/bench-1000

A row for each way: mean of val and test mAP over the seeds, with the difference to the default recovery and
the standard deviation of that difference over the seeds. The learning rate follows from what was lost.
"""

import argparse
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from learning_rates import config_of
from parts import add_demo_or_data, changed, guard, once, score_test, score_val
from recovery_variants import VARIANTS, Case
from rich.console import Console
from rich.table import Table

from autoprune.cost.budget import parse_budget
from autoprune.graph import prune
from autoprune.space.derive import derive_space
from autoprune.space.one_shot import greedy
from autoprune.space.resolve import resolve
from autoprune.task.learning_rate import recovery_rate
from autoprune.task.pruning_task import load_task
from autoprune.task.scoring import score_channels
from autoprune.task.training_start import reinitialize
from autoprune.training import TrainSettings

TEST_IMAGES = 256


def main() -> None:
    """Trains in every way at every budget and seed, and prints the table after each seed."""
    given = arguments()
    varied = ("out", "budgets", "seeds", "variants")
    guard(given.out / "settings.json", {k: str(v) for k, v in vars(given).items() if k not in varied})
    task = load_task(config_of(given, TEST_IMAGES))
    scores = score_channels(task, task.config.criterion, given.out / "scores.safetensors")
    dense = once(given.out / "dense.json", lambda: {"val": score_val(task, task.model)})["val"]
    for seed in range(given.seeds):
        for budget in given.budgets.split(","):
            bound = parse_budget(budget, "gflops", task.graph.gflops())
            file = derive_space(task.graph, scores, task.spec, task.input_size, task.config.criterion)
            space = resolve(file, task.graph, scores)
            keep = space.keep(
                space.as_array(greedy(space, scores, (bound,), task.config.criterion).widths or {})
            )
            start = reinitialize(task, prune(task.model, task.graph, keep), keep, seed)
            untrained = once(result_file(given.out, budget, seed, "untrained"), partial(scored, task, start))
            rate = recovery_rate(untrained["val"], dense)
            settings = TrainSettings.from_config(
                changed(task.config, seed=seed), steps=given.steps, learning_rate=rate
            )
            case = Case(task, scores, keep, start, settings, space, bound)
            for name in given.variants.split(";"):
                work = partial(measure, case, name)
                once(result_file(given.out, budget, seed, name), work)
        show(given, seed + 1)


def measure(case: Case, variant: str) -> dict[str, Any]:
    """MAP on validation and test images after one training."""
    return scored(case.task, VARIANTS[variant](case))


def scored(task: Any, model: Any) -> dict[str, Any]:
    """MAP on validation and test images."""
    return {"val": score_val(task, model), "test": score_test(model, task)}


def show(given: argparse.Namespace, seeds: int) -> None:
    """One row for each way, one column for each budget."""
    table = Table("recovery", title=f"mAP after {given.steps} steps, {seeds} seeds")
    budgets = given.budgets.split(",")
    for budget in budgets:
        table.add_column(budget, justify="right")
    names = given.variants.split(";")
    for name in ("untrained", *names):
        cells = []
        for budget in budgets:
            ours, reference = (
                points(given.out, budget, name, seeds),
                points(given.out, budget, names[0], seeds),
            )
            differences = [a - b for a, b in zip(ours, reference, strict=True)]
            spread = f" ± {stdev(differences):.1f}" if seeds > 1 else ""
            versus = f" ({mean(differences):+.1f}{spread})" if name not in ("untrained", names[0]) else ""
            cells.append(f"{mean(ours):.1f}{versus}")
        table.add_row(name, *cells)
    Console().print(table)


def result_file(out: Path, budget: str, seed: int, name: str) -> Path:
    """Where the mAP of one way is kept."""
    return out / f"{budget}-{seed}-{name}.json"


def points(out: Path, budget: str, name: str, seeds: int) -> list[float]:
    """Mean of val and test mAP of each seed, in points."""
    results = [once(result_file(out, budget, seed, name), dict) for seed in range(seeds)]
    return [
        100 * mean(value for value in (each["val"], each["test"]) if value is not None) for each in results
    ]


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_or_data(parser)
    parser.add_argument("--budgets", default="33%,20%,12%")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the scores")
    parser.add_argument("--distill", type=float, default=1.0)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="the first is the reference")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    if unknown := [name for name in given.variants.split(";") if name not in VARIANTS]:
        parser.error(f"there is no recovery {unknown[0]}; choose {', '.join(VARIANTS)}")
    return given


if __name__ == "__main__":
    main()
