r"""Do whole blocks and smaller input sizes give better detectors than widths alone, at equal latency?

    python scripts/bench/latency_fronts.py --budgets 50%,33%,20% --out runs/bench-latency-fronts

One search for each budget on the latency and each freedom: widths alone, with groups that may be emptied,
with smaller input sizes, with both. The best policy of each is recovered as `autoprune recover` does it, and
timed beside the dense detector. The demo's detector on generated images; a stopped run resumes.
On a machine with other work, ``--cpu-time`` counts the process' own seconds.
"""

import argparse
import os
import time
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

from latency_search import count_cpu_time
from parts import changed, demo_settings, guard, once, score_test
from rich.console import Console
from rich.table import Table

from autoprune import progress
from autoprune.config import Config, make_config
from autoprune.export import load
from autoprune.latency.networks import measure_networks
from autoprune.recovery.recover import recover
from autoprune.runtimes.sessions import RUNTIMES
from autoprune.search.pipeline import search
from autoprune.task.pruning_task import load_task

TEST_IMAGES = 256
FREEDOMS: dict[str, dict[str, Any]] = {
    "widths": {},
    "widths, blocks": {"empty_blocks": True},
    "widths, sizes": {"input_sizes": (1.0, 0.75, 0.5)},
    "widths, blocks, sizes": {"empty_blocks": True, "input_sizes": (1.0, 0.75, 0.5)},
}


def main() -> None:
    """Searches, recovers and times, and prints the table after each budget."""
    given = arguments()
    if given.cpu_time:
        count_cpu_time()
    kept = {
        name: str(value) for name, value in vars(given).items() if name not in ("out", "budgets", "seeds")
    }
    guard(given.out / "settings.json", kept)
    os.environ["AUTOPRUNE_CACHE"] = str(given.out / "cache")
    budgets = given.budgets.split(",")
    with progress.show(Console(stderr=True)):
        for seed in range(given.seeds):
            config = settings(given, seed)
            for done, budget in enumerate(budgets, 1):
                for number, freedom in enumerate(FREEDOMS):
                    file = result_file(given.out, budget, seed, number)
                    once(file, partial(measure, given, config, freedom, budget, file.with_suffix("")))
                show(given.out, budgets[:done] if seed == 0 else budgets, seed + 1)


def measure(
    given: argparse.Namespace, config: Config, freedom: str, budget: str, out: Path
) -> dict[str, Any]:
    """One search under a budget on the latency, and its best policy recovered."""
    bounded = {"budget_latency_ms": budget, "objectives": ("map", "latency_ms")}
    result = search(changed(config, **FREEDOMS[freedom], **bounded, out=out))
    if result.best is None:
        raise SystemExit(f"{out}: no trial was completed; `autoprune front {out}` says why")
    (recovered,) = recover(out)
    task = load_task(config)
    model = load(recovered.folder).to(task.device)
    clock = time.process_time if given.cpu_time else time.perf_counter
    dense, pruned = measure_networks((task.model, model), task.latency_setup, 50, clock)
    emptied = [name for name, kept in recovered.policy.keep.items() if not kept]
    return {
        "val": recovered.map,
        "test": score_test(model, task),
        "ms": pruned.median_ms,
        "dense_ms": dense.median_ms,
        "gflops": recovered.metrics["gflops"],
        "emptied": emptied,
        "input_size": list(recovered.metrics["input_size"]),
        "origin": result.best.origin,
    }


def result_file(out: Path, budget: str, seed: int, number: int) -> Path:
    """Where the result of a freedom is kept."""
    return out / f"{budget}-{seed}-{number}.json"


def show(out: Path, budgets: list[str], seeds: int) -> None:
    """One row for each budget and freedom, means over the seeds."""
    table = Table("budget", "free", "ms", "of dense", "GFLOPs", "mAP (val, test)", "emptied, pixels")
    for budget in budgets:
        for number, freedom in enumerate(FREEDOMS):
            rows = [once(result_file(out, budget, seed, number), dict) for seed in range(seeds)]
            points = 100 * mean(mean((row["val"], row["test"])) for row in rows)
            ms, fraction, gflops = (
                mean(values)
                for values in (
                    [row["ms"] for row in rows],
                    [row["ms"] / row["dense_ms"] for row in rows],
                    [row["gflops"] for row in rows],
                )
            )
            chosen = "; ".join(f"{len(row['emptied'])}, {row['input_size'][0]}" for row in rows)
            table.add_row(
                budget, freedom, f"{ms:.2f}", f"{fraction:.1%}", f"{gflops:.3f}", f"{points:.1f}", chosen
            )
    Console(width=110).print(table)


def settings(given: argparse.Namespace, seed: int) -> Config:
    """What all searches share."""
    return make_config(
        **demo_settings(given.out / "data", TEST_IMAGES),
        latency_runtime=given.runtime,
        threads=1,
        trials=given.trials,
        rungs=(0, 40),
        steps=given.steps,
        seed=seed,
    )


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench-latency-fronts"))
    parser.add_argument("--budgets", default="50%,33%,20%", help="of the dense detector's latency")
    parser.add_argument("--runtime", default="onnxruntime", choices=list(RUNTIMES))
    parser.add_argument("--cpu-time", action="store_true", help="count the process' own seconds")
    parser.add_argument("--trials", type=int, default=24)
    parser.add_argument("--steps", type=int, default=200, help="of each recovery")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, …")
    return parser.parse_args()


if __name__ == "__main__":
    main()
