r"""Which learning rate a recovery needs at each budget: a grid of rates, and the one that is chosen.

At each budget the uniform policy is pruned and reconstructed, then trained at each rate. Without --data it is
the demo's detector on generated images. Each training is one file in --out, so what was stopped is resumed.

    python scripts/bench/learning_rates.py --out runs/bench-rates
    python scripts/bench/learning_rates.py --data DATA --weights WEIGHTS --model retinanet_resnet18_fpn \
        --model-arguments '{"min_size": 192, "max_size": 256}' --budgets 33%,10% --out runs/bench-rates-mine

A row for each budget, and for the dense detector at each of --input-sizes: validation mAP before any
training, after the training at each rate of the grid, and after that at the rate that `task.learning_rate`
chooses, with how far it is from the best of the grid, and with what was expected after a tenth of the steps.
Below, how far all trainings ended from what they expected.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

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

Keep: TypeAlias = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Case:
    """A detector, its data, and the scores that say which channels a width keeps."""

    task: PruningTask
    scores: Importance
    steps: int


def main() -> None:
    """Trains at every budget and rate, and prints the table after each budget."""
    given = arguments()
    varied = ("out", "budgets", "input_sizes", "rates")
    guard(given.out / "settings.json", {k: str(v) for k, v in vars(given).items() if k not in varied})
    task = load_task(config_of(given))
    scores = score_channels(task, task.config.criterion, given.out / "scores.safetensors")
    case = Case(task, scores, given.steps)
    dense = once(given.out / "dense.json", lambda: {"map": score_val(case.task, task.model)})["map"]
    rows = []
    rates = [float(rate) for rate in given.rates.split(",")]
    for pixels in task.smaller:
        small = Case(task.at(pixels), scores, given.steps)
        rows.append(measure(small, f"{pixels} pixels", {}, rates, dense, given.out))
        show(rows, dense, given)
    for budget in given.budgets.split(",") if given.budgets else ():
        rows.append(measure(case, budget, uniform_policy(case, budget), rates, dense, given.out))
        show(rows, dense, given)


def uniform_policy(case: Case, budget: str) -> Keep:
    """The kept channels of each group at a budget."""
    task = case.task
    bound = parse_budget(budget, "gflops", task.graph.gflops())
    file = derive_space(task.graph, case.scores, task.spec, task.input_size, task.config.criterion)
    space = resolve(file, task.graph, case.scores)
    return space.keep(space.as_array(uniform(space, (bound,)).widths or {}))


def measure(
    case: Case, label: str, keep: Keep, rates: list[float], dense: float, out: Path
) -> dict[str, Any]:
    """One row: the untrained mAP, that at each rate, and the chosen rate with its own.

    Args:
        case: at the input size of the row.
        label: of the row.
        keep: {group: kept channels}.
        rates: the grid.
        dense: mAP of the dense detector at its own input size.
        out: where results are kept.
    """
    task = case.task
    start = reinitialize(task, prune(task.model, task.graph, keep), keep, task.config.seed)

    def at(rate: float) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            settings = TrainSettings.from_config(task.config, steps=case.steps, learning_rate=rate)
            teacher = make_teacher(task, keep, case.scores)
            expected: list[Expected] = []
            pair = Pair(dense, untrained)
            watch = expecting(task, start, pair, settings, expected.append) if keep else None
            trained = train(start, task.train, settings, task.device, teacher, after_step=watch).model
            return {"map": score_val(case.task, trained), "expected": expected[0].map if expected else None}

        return once(out / f"{label}-{rate:g}.json", work)

    untrained = once(out / f"{label}.json", lambda: {"map": score_val(case.task, start)})["map"]
    at_size = once(out / f"{label}-dense.json", lambda: {"map": score_val(task, task.model)})["map"]
    chosen = recovery_rate(untrained, at_size, dense)
    trainings = {f"{rate:g}": at(rate) for rate in (*rates, chosen)}
    pairs = [(each.get("expected"), max(each["map"], untrained)) for each in trainings.values()]
    return {
        "label": label,
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
    for name in ("GFLOPs or size", "untrained", *rates, "chosen", "rate", "to the best", "expected"):
        table.add_column(name, justify="right")
    for row in rows:
        best = max(row[rate] for rate in rates)
        cells = [f"[bold]{100 * row[r]:.1f}[/]" if row[r] == best else f"{100 * row[r]:.1f}" for r in rates]
        chosen = [f"{100 * row['chosen']:.1f}", f"{row['rate']:g}", f"{100 * (row['chosen'] - best):+.1f}"]
        chosen.append("" if row["expected"] is None else f"{100 * row['expected']:.1f}")
        table.add_row(row["label"], f"{100 * row['untrained']:.1f}", *cells, *chosen)
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
        "input_sizes": (1.0, *map(float, filter(None, vars(given).get("input_sizes", "").split(",")))),
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
    parser.add_argument("--input-sizes", default="", help="fractions; the dense detector at each is a row")
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
