r"""Which learning rate a recovery needs at each budget: a grid of rates, and the one that is chosen.

At each budget the uniform policy is pruned and reconstructed, then trained at each rate. Without --data it is
the demo's detector on generated images. Each training is one file in --out, so what was stopped is resumed.

    python scripts/bench/learning_rates.py --out runs/bench-rates
    python scripts/bench/learning_rates.py --data DATA --weights WEIGHTS --model retinanet_resnet18_fpn \
        --model-arguments '{"min_size": 192, "max_size": 256}' --budgets 33%,10% --out runs/bench-rates-mine

A row for each budget: validation mAP before any training, after the training at each rate of the grid, and
after that at the rate which `task.learning_rate` chooses, with how far this is from the best of the grid, and
with what was expected after a tenth of the steps. Below, how far all trainings ended from what they expected.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from parts import add_demo_or_data, demo_settings, guard, once, score_val
from rich.console import Console
from rich.table import Table

from autoprune.config import Config, make_config
from autoprune.cost.budget import parse_budget
from autoprune.graph import prune
from autoprune.importance import Importance
from autoprune.recovery.expect import Expected, Pair, expecting
from autoprune.space.derive import derive_space
from autoprune.space.one_shot import uniform
from autoprune.space.resolve import resolve
from autoprune.task.learning_rate import recovery_rate
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.task.scoring import score_channels
from autoprune.task.training_start import make_teacher, reinitialize
from autoprune.training import TrainSettings, train


@dataclass(frozen=True)
class Case:
    """A detector, its data, and the scores that say which channels a width keeps."""

    task: PruningTask
    scores: Importance
    steps: int


def main() -> None:
    """Trains at every budget and rate, and prints the table after each budget."""
    given = arguments()
    varied = ("out", "budgets", "rates")
    guard(given.out / "settings.json", {k: str(v) for k, v in vars(given).items() if k not in varied})
    task = load_task(config_of(given))
    scores = score_channels(task, task.config.criterion, given.out / "scores.safetensors")
    case = Case(task, scores, given.steps)
    dense = once(given.out / "dense.json", lambda: {"map": score_val(case.task, task.model)})["map"]
    rows = []
    for budget in given.budgets.split(","):
        rows.append(measure(case, budget, [float(rate) for rate in given.rates.split(",")], dense, given.out))
        show(rows, dense, given)


def measure(case: Case, budget: str, rates: list[float], dense: float, out: Path) -> dict[str, Any]:
    """One row: the untrained mAP, that at each rate, and the chosen rate with its own."""
    task = case.task
    bound = parse_budget(budget, "gflops", task.graph.gflops())
    file = derive_space(task.graph, case.scores, task.spec, task.input_size, task.config.criterion)
    space = resolve(file, task.graph, case.scores)
    keep = space.keep(space.as_array(uniform(space, (bound,)).widths or {}))
    start = reinitialize(task, prune(task.model, task.graph, keep), keep, task.config.seed)

    def at(rate: float) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            settings = TrainSettings.from_config(task.config, steps=case.steps, learning_rate=rate)
            teacher = make_teacher(task, keep, case.scores)
            expected: list[Expected] = []
            watch = expecting(task, start, Pair(dense, untrained), settings, expected.append)
            trained = train(start, task.train, settings, task.device, teacher, after_step=watch).model
            return {"map": score_val(case.task, trained), "expected": expected[0].map if expected else None}

        return once(out / f"{budget}-{rate:g}.json", work)

    untrained = once(out / f"{budget}.json", lambda: {"map": score_val(case.task, start)})["map"]
    chosen = recovery_rate(untrained, dense)
    trainings = {f"{rate:g}": at(rate) for rate in (*rates, chosen)}
    pairs = [(each.get("expected"), max(each["map"], untrained)) for each in trainings.values()]
    return {
        "budget": budget,
        "untrained": untrained,
        **{name: each["map"] for name, each in trainings.items()},
        "rate": chosen,
        "chosen": trainings[f"{chosen:g}"]["map"],
        "expected": trainings[f"{chosen:g}"].get("expected"),
        "errors": [abs(expected - reached) for expected, reached in pairs if expected is not None],
    }


def show(rows: list[dict[str, Any]], dense: float, given: argparse.Namespace) -> None:
    """The table, best of the grid in bold."""
    rates = [f"{float(rate):g}" for rate in given.rates.split(",")]
    table = Table(title=f"mAP after {given.steps} steps, dense {100 * dense:.1f}")
    for name in ("GFLOPs", "untrained", *rates, "chosen", "rate", "to the best", "expected"):
        table.add_column(name, justify="right")
    for row in rows:
        best = max(row[rate] for rate in rates)
        cells = [f"[bold]{100 * row[r]:.1f}[/]" if row[r] == best else f"{100 * row[r]:.1f}" for r in rates]
        chosen = [f"{100 * row['chosen']:.1f}", f"{row['rate']:g}", f"{100 * (row['chosen'] - best):+.1f}"]
        chosen.append("" if row["expected"] is None else f"{100 * row['expected']:.1f}")
        table.add_row(row["budget"], f"{100 * row['untrained']:.1f}", *cells, *chosen)
    Console().print(table)
    if errors := sorted(error for row in rows for error in row["errors"]):
        most = errors[math.ceil(0.8 * len(errors)) - 1]
        print(f"four of five of {len(errors)} trainings ended within {100 * most:.1f} of what they expected")


def config_of(given: argparse.Namespace, test: int = 0) -> Config:
    """The settings: the demo's detector on generated images, or what --data and the others name."""
    common = {
        "seed": given.seed,
        "distill": given.distill,
        "distill_head": vars(given).get("distill_head", True),
        "clip_norm": given.clip_norm,
        "out": given.out / "run",
    }
    if given.data is not None:
        model = {"model": given.model, "model_arguments": json.loads(given.model_arguments)}
        return make_config(**common, **model, data=given.data, weights=given.weights)
    return make_config(**common, **demo_settings(given.out / "data", test))


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_or_data(parser)
    parser.add_argument("--budgets", default="50%,33%,20%,12%")
    parser.add_argument("--rates", default="3e-4,1e-3,3e-3")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--distill", type=float, default=1.0)
    parser.add_argument("--no-distill-head", dest="distill_head", action="store_false")
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
