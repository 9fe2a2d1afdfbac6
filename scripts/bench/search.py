r"""What a search is worth: its policies against those of other methods, all recovered alike, in one table.

Same dense weights, data, recovery and number of steps for all; each seed is a seed of everything random (the
images that channels are scored on, the search, the images of the reconstruction, the order of the recovery).
Every result is one JSON file in --out/results, so a run that was stopped resumes; ``--methods ''`` prints the
table as it stands. The demo's detector on generated images needs no data:

    python scripts/bench/search.py --demo --budgets 33%,20%,12% --out runs/bench-search \
        --peer-python PYTHON_WITH_TORCH_PRUNING

All are recovered as `autoprune recover` does it (--recovery ours): reconstruction, the dense detector as
teacher, learning rate by what was lost. With --recovery plain it is BatchNorm recalibration, then training
on the detection loss alone, and so are the proxies of the searches.

Methods:
    uniform         the same ratio for all groups, channels by Taylor; uniform-obs: by our default criterion
    tp-taylor       torch-pruning, global ranking by its GroupTaylorImportance
    tp-l2           torch-pruning, global ranking by its GroupMagnitudeImportance(p=2)
    fisher          Group Fisher's order, one shot: the least importance per GFLOP, again and again
    lower-size      the dense detector at the largest input size that meets the budget; lower-size-uniform:
                    one size larger, uniform ratios for the rest
    greedy-obs      that order by our default criterion
    greedy-curves   that order by sensitivity curves, measured after reconstruction
    fastnas         FastNAS's score (mAP after BatchNorm recalibration), channels by L2 norm, an evolutionary
                    search (NSGA-II) over widths; not modelopt's own code
    random          random search, with autoprune's proxies and space
    ours            `autoprune search`; ours-obs: without curves; ours-joint: without, and by the criterion
                    `joint`, the default before `obs`
    ours-blocks     `autoprune search --empty-blocks`; ours-sizes: `--input-sizes 1,0.75,0.5`; ours-all: both

Seed variance is as large as what methods differ by, so policies can be recovered several times
(--recoveries-each), with more seeds. --policies takes the policies of another --out, to recover them for more
steps or plainly. With --recovery plain, a second table recovers the policies of `ours` in other ways
(--recoveries), with the same number of steps.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any

from parts import Result, add_detector, changed, demo_settings, guard, once
from search_methods import METHODS, Case, Choice
from search_table import show, show_recoveries

from autoprune.config import make_config
from autoprune.data.coco import open_data
from autoprune.data.evaluate import Metrics, evaluate
from autoprune.detectors import pixel_resizing
from autoprune.errors import DataError
from autoprune.export import load
from autoprune.policy import Policy
from autoprune.recovery.recover_policy import recover_policy
from autoprune.run.names import POLICY_FILE
from autoprune.space.resolve import resolve
from autoprune.task.pruning_task import PruningTask, load_task

AGAIN = 1000  # between the seeds of two recoveries of one policy
DEMO_TEST_IMAGES = 256
PLAIN: dict[str, Any] = {"distill": 0, "distill_logits": 0, "reconstruct_images": 0, "regrow_rounds": 0}
# Each changes PLAIN by what it names, so that two lines that differ in one thing say what that is worth.
_DISTILLED = {"distill": 1, "distill_head": False, "distill_weighting": "none"}
_BOTH = {**_DISTILLED, "reconstruct_images": 32}
RECOVERIES: dict[str, dict[str, Any]] = {
    "distilled": _DISTILLED,
    "distilled-by-importance": {**_DISTILLED, "distill_weighting": "importance"},
    "reconstructed": {"reconstruct_images": 32},
    "reconstructed-distilled": _BOTH,
    "reconstructed-distilled-by-importance": {**_BOTH, "distill_weighting": "importance"},
    "with-head": {**_BOTH, "distill_head": True},
    "with-logits": {**_BOTH, "distill_logits": 1},
    "regrown": {**_BOTH, "regrow_rounds": 2},
    "frozen-norms": {**_BOTH, "norm": "freeze"},
    "trained-norms": {**_BOTH, "norm": "train"},
}

Dense = Callable[[], Metrics]


def measure(case: Case, dense: Dense) -> Result:
    """Finds a policy, recovers it, and scores it on validation and test images."""
    choice = earlier_choice(case) if case.given.policies else find(case)
    gflops = case.at(choice.pixels).costs(choice.keep)["gflops"]
    if gflops > case.budget.limit * (1 + 1e-9):
        raise SystemExit(f"{case.method}: {gflops:.4f} GFLOPs are above the budget, {case.budget.limit:.4f}")
    return {**recovered(case, choice, dense), "policy_s": choice.seconds, "notes": dict(choice.notes)}


def find(case: Case) -> Choice:
    """A method's policy, and what all of it took."""
    method = METHODS[case.method]
    scoring_s = sum(case.scoring_s(criterion) for criterion in method.criteria)
    started = time.perf_counter()
    choice = method.choose(case)
    spent = time.perf_counter() - started if choice.seconds is None else choice.seconds
    return choice._replace(seconds=scoring_s + spent)


def earlier_choice(case: Case) -> Choice:
    """The policy that a method found in the folder --policies."""
    result = json.loads((case.given.policies / "results" / f"{case.name}.json").read_text(encoding="utf-8"))
    return read_choice(case, case.given.policies)._replace(notes=result["notes"], seconds=result["policy_s"])


def read_choice(case: Case, out: Path) -> Choice:
    """The policy that a method found, from the folder of its recovery."""
    policy = Policy.load(out / "recovered" / case.name / POLICY_FILE)
    return Choice(policy.keep, None if policy.resize is None else policy.resize.pixels)


def measure_again(case: Case, again: int, dense: Dense) -> Result:
    """Recovers a method's policy once more, with another seed: how much of a difference is luck?"""
    return {"again": again, **recovered(case, read_choice(case, case.given.out), dense, again)}


def measure_recovery(recovery: str, case: Case, dense: Dense) -> Result:
    """Recovers the policy of `ours` in another way."""
    choice = read_choice(replace(case, method="ours"), case.given.out)
    config = changed(case.config, **RECOVERIES[recovery])
    task = load_task(config) if "norm" in RECOVERIES[recovery] else replace(case.task, config=config)
    result = recovered(replace(case, task=task, method=recovery), choice, dense)
    return {**result, "method": None, "recovery": recovery}


def recovered(case: Case, choice: Choice, dense: Dense, again: int = 0) -> Result:
    """Recovers a policy and scores it; ``again`` numbers further recoveries of the same policy."""
    keep = {group: tuple(kept) for group, kept in choice.keep.items()}
    folder = case.given.out / "recovered" / f"{case.name}{f'-again-{again}' if again else ''}"
    config = changed(case.config, seed=case.config.seed + AGAIN * again)
    task, scores = replace(case.at(choice.pixels), config=config), case.scores(config.criterion)
    result = recover_policy(
        task,
        keep,
        folder,
        scores,
        dense,
        label=f"recovery of {folder.name}",
        space=resolve(case.wide_space(config.criterion), task.graph, scores),
        full_size=replace(case.task, config=config),
    )
    return {
        "method": case.method,
        "budget": case.config.budget_gflops[0],
        "seed": case.config.seed,
        **score(load(folder).to(task.device), task),
        **task.costs(result.policy.keep),
        "pixels": choice.pixels,
        "untrained": result.metrics["untrained_map"],
        "recovery_s": result.metrics["training_s"],
    }


def score(model: Any, task: PruningTask) -> Result:
    """MAP on validation and test images (``None`` where there are none), and that on resamples of them."""
    splits = {"val": task.val}
    with suppress(DataError):
        splits["test"] = open_data(task.config.data, "test", pixel_resizing(task.model))
    metrics = {
        name: evaluate(model, split, task.device, batch_size=task.config.batch_size, error=True)
        for name, split in splits.items()
    }
    maps: Result = {"test": None, **{name: metric.map for name, metric in metrics.items()}}
    return {**maps, "bootstrap": {name: metric.bootstrap for name, metric in metrics.items()}}


def main() -> None:
    given = arguments()
    common = settings(given)
    guard(given.out / "settings.json", common)
    task = load_task(make_config(**common))
    folder = given.out / "results"
    once(folder / "dense.json", lambda: {**score(task.model, task), **task.costs({})})
    dense = cache(partial(evaluate, task.model, task.val, task.device, batch_size=task.config.batch_size))

    for seed in range(given.first_seed, given.first_seed + given.seeds):
        for budget in given.budgets.split(","):
            at_budget = replace(task, config=make_config(**common, seed=seed, budget_gflops=budget))
            cases = [Case(at_budget, given, method) for method in given.methods]
            for case in cases:
                once(folder / f"{case.name}.json", partial(measure, case, dense))
            for again in range(1, given.recoveries_each):
                for case in cases:
                    once(
                        folder / f"{case.name}-again-{again}.json", partial(measure_again, case, again, dense)
                    )
            for recovery in given.recoveries:
                case = Case(at_budget, given, recovery)
                file = folder / f"recovery-{case.name}.json"
                once(file, partial(measure_recovery, recovery, case, dense))
    show(folder, given.budgets.split(","), given.steps, given.reference)
    if given.recovery == "plain":
        show_recoveries(folder, given.budgets.split(","), given.steps)


def settings(given: argparse.Namespace) -> dict[str, Any]:
    """Fields of `Config` that all methods share."""
    more = dict(text.split("=", 1) for text in given.set)
    detector = {
        "model": given.model,
        "model_arguments": json.loads(given.model_arguments),
        "weights": given.weights,
        "data": given.data,
    }
    return {
        **(demo_settings(given.out / "data", DEMO_TEST_IMAGES) if given.demo else detector),
        "steps": given.steps,
        "trials": given.trials,
        **(PLAIN if given.recovery == "plain" else {}),
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
    parser.add_argument("--demo", action="store_true", help="the demo's detector on generated images")
    parser.add_argument("--out", type=Path, default=Path("runs/bench-search"))
    parser.add_argument("--budgets", default="33%,20%,12%")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument(
        "--first-seed", type=int, default=0, help="so that machines with one --out share the seeds"
    )
    parser.add_argument("--recovery", choices=("ours", "plain"), default="ours")
    parser.add_argument("--steps", type=int, default=200, help="of each recovery")
    parser.add_argument("--trials", type=int, default=24, help="of ours and of random search")
    parser.add_argument("--fastnas-trials", type=int, default=72)
    parser.add_argument("--taylor-images", type=int, default=40, help="for torch-pruning's Taylor scores")
    parser.add_argument("--methods", type=names, default=list(METHODS), help="separated by commas")
    parser.add_argument("--policies", type=Path, metavar="OUT", help="recover the policies found there")
    parser.add_argument("--reference", default="ours", help="the method that others are compared with")
    parser.add_argument(
        "--recoveries-each", type=int, default=1, help="recoveries of each policy, each with another seed"
    )
    parser.add_argument(
        "--recoveries",
        type=names,
        default=[],
        help=f"of the policies of `ours`, with --recovery plain: {', '.join(RECOVERIES)}",
    )
    parser.add_argument("--peer-python", default=sys.executable, help="interpreter that has torch-pruning")
    parser.add_argument(
        "--set", action="append", default=[], metavar="FIELD=VALUE", help="any other field of the settings"
    )
    given = parser.parse_args()
    if unknown := [name for name in (*given.methods, given.reference) if name not in METHODS]:
        parser.error(f"there is no method {unknown[0]}; choose {', '.join(METHODS)}")
    if unknown := [name for name in given.recoveries if name not in RECOVERIES]:
        parser.error(f"there is no recovery {unknown[0]}; choose {', '.join(RECOVERIES)}")
    if given.recoveries and given.recovery != "plain":
        parser.error("--recoveries vary the plain recovery: give --recovery plain, too")
    return given


if __name__ == "__main__":
    main()
