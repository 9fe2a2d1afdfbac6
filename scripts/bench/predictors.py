r"""What predicts the mAP of a recovered policy: Spearman's rank correlation of what is known before it.

At each budget, the policies of one-shot methods and others spread around the uniform one are reconstructed,
taken up the rungs as a search would, and recovered. Channels go in the order of --criterion. Without --data
it is the demo's detector on generated images. Each policy is one file in --out: what was stopped is resumed.

    python scripts/bench/predictors.py --budgets 20%,12% --out runs/bench-predictors
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from learning_rates import config_of
from parts import add_demo_or_data, guard, once, score_val
from rich.console import Console
from rich.table import Table
from scipy.stats import rankdata

from autoprune.config import Config
from autoprune.cost.budget import Budget, parse_budget
from autoprune.importance import CURVES, Importance
from autoprune.recovery.rank_correlation import estimate, spearman
from autoprune.search.curves import score_curves
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.one_shot import warm_starts, widths_of
from autoprune.space.resolve import resolve
from autoprune.space.space import Space, Widths
from autoprune.space.width_options import removed_by
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.learning_rate import recovery_rate
from autoprune.task.pruning_task import load_task
from autoprune.task.scoring import score_several
from autoprune.task.training_start import make_teacher
from autoprune.training import TrainSettings, train

CRITERIA = ("obs", "joint", "taylor", "fisher", "l2")
RUNGS = (0, 20, 40, 80)
LARGEST_RATIO = 0.95
MIXTURES = (("mAP after 0 steps", "mAP after 40 steps"), ("mAP after 0 steps", "sum of curves"))
SPREADS = (0.25, 0.5, 0.8)  # standard deviation of the logarithm of what a group keeps


def main() -> None:
    """Measures every policy of every budget, and prints its table after each budget."""
    given = arguments()
    guard(
        given.out / "settings.json",
        {k: str(v) for k, v in vars(given).items() if k not in ("out", "budgets")},
    )
    config: Config = config_of(given).model_copy(update={"rungs": RUNGS, "criterion": given.criterion})
    task = load_task(config)
    order = [given.criterion, *(name for name in CRITERIA if name != given.criterion)]
    scores = score_several(task, order, given.out / "scores.safetensors")
    curves = score_curves(task, scores[given.criterion], given.out / "curves.json", empty=False)
    scores = {CURVES: curves, **scores}
    file = SpaceFile(
        model=task.spec.name,
        model_arguments=task.spec.arguments,
        input_size=task.input_size,
        criterion=given.criterion,
        groups=(GroupRule(match="*", max_ratio=LARGEST_RATIO),),
    )
    space = resolve(file, task.graph, scores[given.criterion])
    dense = once(given.out / "dense.json", lambda: {"map": score_val(task, task.model)})["map"]
    evaluator = PolicyEvaluator(task, space, scores[given.criterion], dense_map=dense)
    for budget in given.budgets.split(","):
        bound = parse_budget(budget, "gflops", task.graph.gflops())
        rows = []
        for number, (name, widths) in enumerate(policies(space, scores, bound, given.policies)):
            work = partial(measure, evaluator, scores, name, widths, given.steps)
            rows.append(once(given.out / f"{budget}-{number:02d}.json", work))
        show(budget, rows, given.steps)


def policies(
    space: Space, scores: dict[str, Importance], bound: Budget, count: int
) -> list[tuple[str, Widths]]:
    """One-shot policies on a budget, and random ones around the uniform and the best of them."""
    chosen = [(start.origin, widths_of(space, start)) for start in warm_starts(space, scores, [bound])]
    random, centers = np.random.default_rng(0), [space.fractions(chosen[place][1]) for place in (0, 1)]
    number = 0
    while len(chosen) < count:
        center, spread = centers[number % 2], SPREADS[number % len(SPREADS)]
        kept = (1 - center * LARGEST_RATIO) * np.exp(spread * random.normal(size=len(center)))
        fractions = np.clip((1 - kept) / LARGEST_RATIO, 0, 1)
        widths = space.project_to_budget(fractions, [bound])
        if not any(np.array_equal(widths, other) for _, other in chosen):
            chosen.append((f"around {chosen[number % 2][0]}", widths))
        number += 1
    return chosen[:count]


def measure(
    evaluator: PolicyEvaluator, scores: dict[str, Importance], name: str, widths: Widths, steps: int
) -> dict[str, Any]:
    """All that may predict the mAP of one policy, and the mAP after its recovery."""
    task, space = evaluator.task, evaluator.space
    keep = space.keep(widths)
    row: dict[str, Any] = {"name": name, **task.costs(keep)}
    row |= {f"sum of {each}": -removed_by(space, score, widths) for each, score in scores.items()}
    state = start = None
    for rung, trained in enumerate(RUNGS):
        metrics, state = evaluator.evaluate(space.as_dict(widths), rung, state)
        row[f"mAP after {trained} steps"] = metrics["map"]
        if rung == 0:
            start = state.model
            row["loss after the reconstruction"] = -float(metrics["loss"])
    assert start is not None
    untrained = row["mAP after 0 steps"]
    settings = TrainSettings.from_config(
        task.config, steps=steps, learning_rate=recovery_rate(untrained, evaluator.dense_map or untrained)
    )
    teacher = make_teacher(task, keep, evaluator.importance)
    model = train(start, task.train, settings, task.device, teacher).model
    return {**row, "recovered": score_val(task, model)}


def show(budget: str, measured: list[dict[str, Any]], steps: int) -> None:
    """Rank correlations with the recovered mAP, of all policies and of the better half of them."""
    table = Table(
        "",
        "all, 95%",
        "the better half, 95%",
        "its first less the best, mAP",
        title=f"{budget}: Spearman's ρ with the mAP of {len(measured)} policies after {steps} steps",
    )
    measured = sorted(measured, key=lambda row: -row["recovered"])
    names = [name for name in measured[0] if name not in ("name", "gflops", "recovered")]
    predictors: dict[str, Sequence[float]] = {name: [row[name] for row in measured] for name in names}
    predictors |= {f"ranks of {' and '.join(mix)}": mixed(predictors, mix) for mix in MIXTURES}
    recovered = np.array([row["recovered"] for row in measured])
    half = len(measured) // 2
    for name, values in predictors.items():
        known = np.asarray(values, dtype=float)
        correlations = [str(estimate(spearman, known[:end], recovered[:end])) for end in (len(known), half)]
        lost = 100 * (recovered[known.argmax()] - recovered[0])
        table.add_row("parameters kept" if name == "mparams" else name, *correlations, f"{lost:.1f}")
    console = Console(width=120)
    console.print(table)
    shown = ", ".join(f"{row['name']} {100 * row['recovered']:.1f}" for row in measured[:5])
    uniform = next(row for row in measured if row["name"] == "uniform")
    worst = 100 * recovered[-1]
    console.print(f"best {shown}; uniform {100 * uniform['recovered']:.1f}; worst {worst:.1f}")


def mixed(predictors: Mapping[str, Sequence[float]], names: Sequence[str]) -> Sequence[float]:
    """The sum of the ranks of a policy by several predictors."""
    ranks: Sequence[float] = sum(rankdata(predictors[name]) for name in names)
    return ranks


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_or_data(parser)
    parser.add_argument("--criterion", default="obs", choices=CRITERIA)
    parser.add_argument("--budgets", default="20%,12%")
    parser.add_argument("--policies", type=int, default=24, help="at each budget")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--distill", type=float, default=1.0)
    parser.add_argument("--clip-norm", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


if __name__ == "__main__":
    main()
