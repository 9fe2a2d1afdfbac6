r"""What a search is worth: its policies against those of other methods, all recovered alike, in one table.

Same dense weights, data, recovery and number of steps for all; each seed is a seed of everything random (the
images that channels are scored on, the search, the order of the recovery). Every result is one JSON file in
--out/results, so a run that was stopped goes on where it was.

    python scripts/bench/search.py --peer-python PYTHON_WITH_TORCH_PRUNING --out runs/bench-search

Methods:
    uniform     the same ratio for all groups, channels by autoprune's criterion
    tp-taylor   torch-pruning, global ranking by its GroupTaylorImportance
    tp-l2       torch-pruning, global ranking by its GroupMagnitudeImportance(p=2)
    fastnas     FastNAS's score (mAP after BatchNorm recalibration), channels by L2 norm, an evolutionary
                search (NSGA-II) over widths; not modelopt's own code
    fisher      Group Fisher's order, one shot: the least importance per GFLOP, again and again
    random      random search, with autoprune's proxies and space
    ours        `autoprune search`, its proxies trained as plainly as all are recovered
    own-proxies `autoprune search` with the proxies that are its default (reconstructed, distilled)

All are recovered plainly: BatchNorm recalibration, then training on the detection loss alone. Seed variance
is as large as what methods differ by, so each policy is recovered --recoveries-each times.
A second table recovers the policies of `ours` in other ways (--recoveries), with the same number of steps.
"""

import argparse
import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from parts import add_detector, changed, guard, once, score_dense, score_test
from search_methods import METHODS, PLAIN, Case
from search_table import show, show_recoveries

from autoprune.config import make_config
from autoprune.export import load
from autoprune.policy import Policy
from autoprune.recovery.recover_policy import recover_policy
from autoprune.run.names import POLICY_FILE
from autoprune.task.pruning_task import load_task

AGAIN = 1000  # between the seeds of two recoveries of one policy
# Each changes PLAIN by what it names, so that two lines that differ in one thing say what that is worth.
_DISTILLED = {"distill": 1, "distill_weighting": "none"}
_BOTH = {**_DISTILLED, "reconstruct_images": 32}
RECOVERIES: dict[str, dict[str, Any]] = {
    "distilled": _DISTILLED,
    "distilled-by-importance": {"distill": 1, "distill_weighting": "importance"},
    "reconstructed": {"reconstruct_images": 32},
    "reconstructed-distilled": _BOTH,
    "reconstructed-distilled-by-importance": {**_BOTH, "distill_weighting": "importance"},
    "with-logits": {**_BOTH, "distill_logits": 1},
    "regrown": {**_BOTH, "regrow_rounds": 2},
    "frozen-norms": {**_BOTH, "norm": "freeze"},
    "trained-norms": {**_BOTH, "norm": "train"},
}


def measure(method: str, case: Case) -> dict[str, Any]:
    """Finds a policy, recovers it, and scores it on validation and test images."""
    started = time.perf_counter()
    keep, notes = METHODS[method](case)
    chosen = time.perf_counter()
    costs = case.task.costs(keep)
    if costs["gflops"] > case.budget.limit:
        raise SystemExit(
            f"{method}: {costs['gflops']:.4f} GFLOPs are above the budget, {case.budget.limit:.4f}"
        )
    result = recovered(case, keep, method)
    return {"method": method, **result, "policy_s": chosen - started, "notes": notes}


def measure_recovery(recovery: str, case: Case) -> dict[str, Any]:
    """Recovers the policy of `ours` in another way."""
    policy = Policy.load(case.given.out / "recovered" / case.name("ours") / POLICY_FILE)
    config = changed(case.config, **RECOVERIES[recovery])
    task = load_task(config) if "norm" in RECOVERIES[recovery] else replace(case.task, config=config)
    return {"recovery": recovery, **recovered(replace(case, task=task), policy.keep, recovery)}


def measure_again(method: str, case: Case, again: int) -> dict[str, Any]:
    """Recovers a method's policy once more, with another seed: how much of a difference is luck?"""
    policy = Policy.load(case.given.out / "recovered" / case.name(method) / POLICY_FILE)
    return {"method": method, "again": again, **recovered(case, policy.keep, method, again)}


def recovered(case: Case, keep: Mapping[str, Any], name: str, again: int = 0) -> dict[str, Any]:
    """Recovers a policy and scores it; ``again`` numbers further recoveries of the same policy."""
    keep = {group: tuple(kept) for group, kept in keep.items()}
    folder = case.given.out / "recovered" / f"{case.name(name)}{f'-again-{again}' if again else ''}"
    space = case.wide_space(case.config.criterion)[1]
    config = changed(case.config, seed=case.config.seed + AGAIN * again)
    result = recover_policy(
        replace(case.task, config=config),
        keep,
        folder,
        case.scores(case.config.criterion),
        label=f"recovery of {folder.name}",
        space=space,
    )
    return {
        "budget": case.config.budget_gflops[0],
        "seed": case.config.seed,
        "val": result.map,
        "test": score_test(load(folder).to(case.task.device), case.task),
        **case.task.costs(result.policy.keep),
        "recovery_s": result.metrics["training_s"],
    }


def main() -> None:
    given = arguments()
    common = settings(given)
    guard(given.out / "settings.json", common)
    task = load_task(make_config(**common))
    folder = given.out / "results"
    once(folder / "dense.json", partial(score_dense, task))

    def make_case(seed: int, budget: str) -> Case:
        return Case(replace(task, config=make_config(**common, seed=seed, budget_gflops=budget)), given)

    for seed in range(given.seeds):
        for budget in given.budgets.split(","):
            for method in given.methods:
                case = make_case(seed, budget)
                once(folder / f"{case.name(method)}.json", partial(measure, method, case))
            for again in range(1, given.recoveries_each):
                for method in given.methods:
                    case = make_case(seed, budget)
                    file = folder / f"{case.name(method)}-again-{again}.json"
                    once(file, partial(measure_again, method, case, again))
            for recovery in given.recoveries:
                case = make_case(seed, budget)
                once(
                    folder / f"recovery-{case.name(recovery)}.json", partial(measure_recovery, recovery, case)
                )
    show(folder, given.budgets.split(","), given.steps)
    show_recoveries(folder, given.budgets.split(","), given.steps)


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Fields of `Config` that all methods share."""
    more = dict(text.split("=", 1) for text in given.set)
    return {
        "model": given.model,
        "model_arguments": json.loads(given.model_arguments),
        "weights": given.weights,
        "data": given.data,
        "steps": given.steps,
        "trials": given.trials,
        **PLAIN,
        **{name: _value(text) for name, text in more.items()},
    }


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError:
        return text


def names(text: str) -> list[str]:
    """What stands between commas."""
    return [name for name in text.split(",") if name]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_detector(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--budgets", default="50%,33%")
    parser.add_argument("--seeds", type=int, default=3, help="seeds 0, 1, …")
    parser.add_argument("--steps", type=int, default=200, help="of each recovery")
    parser.add_argument("--trials", type=int, default=24, help="of ours and of random search")
    parser.add_argument("--fastnas-trials", type=int, default=72)
    parser.add_argument("--taylor-images", type=int, default=40, help="for torch-pruning's Taylor scores")
    parser.add_argument("--methods", type=names, default=list(METHODS), help="separated by commas")
    parser.add_argument(
        "--recoveries-each", type=int, default=3, help="recoveries of each policy, each with another seed"
    )
    parser.add_argument(
        "--recoveries",
        type=names,
        default=list(RECOVERIES),
        help=f"of the policies of `ours`: {', '.join(RECOVERIES)}; '' for none",
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch-pruning")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="any other field of the settings"
    )
    given = parser.parse_args()
    if unknown := [name for name in given.methods if name not in METHODS]:
        parser.error(f"there is no method {unknown[0]}; choose {', '.join(METHODS)}")
    if unknown := [name for name in given.recoveries if name not in RECOVERIES]:
        parser.error(f"there is no recovery {unknown[0]}; choose {', '.join(RECOVERIES)}")
    return given


if __name__ == "__main__":
    main()
