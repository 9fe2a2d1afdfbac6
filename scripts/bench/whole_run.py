r"""A whole run through the public commands, timed: dense, uniform and searched on val and test.

The folder in --out keeps everything; a stopped run resumes from it. Example (the BCCD
detector of the project's benchmarks):

    python scripts/bench/whole_run.py --data DATA --weights WEIGHTS --model retinanet_resnet18_fpn \
        --model-arguments '{"min_size": 192, "max_size": 256}' --out runs/whole
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from autoprune.run.results import load_result


def main() -> None:
    given = arguments()
    out: Path = given.out
    detector = [
        "--model",
        given.model,
        "--model-arguments",
        given.model_arguments,
        "--weights",
        given.weights,
    ]
    data = ["--data", given.data]
    common = ["--batch-size", str(given.batch_size), "--learning-rate", str(given.learning_rate)]
    clock = Clock(out / "seconds.json")

    dense = {split: clock.evaluate(["--split", split, *detector, *data], split) for split in given.splits}
    space, run = out / "space.yaml", out / "search"
    clock.run("space", ["space", *detector, *data, "--to", str(space)], done=space)
    searching = [
        *("search", *detector, *data, *common, "--space", str(space), "--out", str(run)),
        *("--budget-gflops", given.budget, "--trials", str(given.trials), "--rungs", given.rungs),
        *("--seed", str(given.seed), "--steps", str(given.steps), "--precision", given.precision),
    ]
    clock.run("search", searching)
    best, uniform = chosen(run)
    for name, trial in (("searched", best), ("uniform", uniform)):
        clock.run(f"recover {name}", ["recover", str(run), "--trial", str(trial)])
    exported = out / "detector"
    recovered = {
        name: run / "recovered" / f"trial-{trial:04d}"
        for name, trial in (("searched", best), ("uniform", uniform))
    }
    clock.run("export", ["export", str(recovered["searched"]), "--to", str(exported)], done=exported)
    rows = {"dense": dense}
    for name, folder in (("uniform", recovered["uniform"]), ("searched", exported)):
        rows[name] = {
            s: clock.evaluate([str(folder), *data, "--split", s], f"{name} {s}") for s in given.splits
        }
    costs = {name: json.loads((folder / "metrics.json").read_text()) for name, folder in recovered.items()}
    show(rows, {"dense": costs["searched"]["dense"], **costs}, clock.seconds, run)


class Clock:
    """Runs commands and keeps how long each took, over restarts."""

    def __init__(self, file: Path) -> None:
        """Takes up the times of an earlier start."""
        self.file = file
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def run(self, step: str, command: list[str], done: Path | None = None) -> str:
        """Runs ``autoprune`` with ``command`` unless ``done`` is there; returns what it printed."""
        if done is not None and done.exists():
            return ""
        started = time.monotonic()
        print(f"$ autoprune {' '.join(command)}", file=sys.stderr, flush=True)
        ended = subprocess.run(
            [sys.executable, "-m", "autoprune", *command],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        print(ended.stdout, file=sys.stderr, flush=True)
        self.seconds[step] = self.seconds.get(step, 0.0) + time.monotonic() - started
        self.file.parent.mkdir(parents=True, exist_ok=True)
        self.file.write_text(json.dumps(self.seconds))
        return ended.stdout

    def evaluate(self, command: list[str], what: str) -> dict[str, Any]:
        """The numbers of `autoprune eval`."""
        printed: dict[str, Any] = json.loads(self.run(f"eval {what}", ["eval", *command, "--json"]))
        return printed


def chosen(run: Path) -> tuple[int, int]:
    """Numbers of the best trial on the front and of the uniform warm start."""
    with (run / "front.csv").open(newline="") as file:
        trials = list(csv.DictReader(file))
    best = max(trials, key=lambda trial: float(trial["map"]))
    return int(best["trial"]), 0


def show(
    scores: dict[str, dict[str, Any]], costs: dict[str, dict[str, Any]], seconds: dict[str, float], run: Path
) -> None:
    """Prints the comparison and the wall time of each step."""
    console = Console(width=100)
    table = Table(
        "detector",
        "fraction of GFLOPs",
        "GFLOPs",
        "M parameters",
        *(f"{split} mAP" for split in scores["dense"]),
    )
    for name, by_split in scores.items():
        cost = costs[name]
        table.add_row(
            name,
            f"{cost['gflops'] / costs['dense']['gflops']:.3f}",
            f"{cost['gflops']:.3f}",
            f"{cost['mparams']:.3f}",
            *(f"{100 * numbers['metrics']['map']:.2f}" for numbers in by_split.values()),
        )
    console.print(table)
    times = Table("step", "seconds")
    for step, value in seconds.items():
        times.add_row(step, f"{value:.0f}")
    console.print(times)
    console.print(f"search time outside training and evaluation: {load_result(run).overhead:.1%}")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--model", default="retinanet_resnet50_fpn")
    parser.add_argument("--model-arguments", default="{}", help="JSON")
    parser.add_argument("--out", type=Path, default=Path("runs/whole"))
    parser.add_argument("--budget", default="50%")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--rungs", default="0,20")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=3e-4)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--splits", nargs="+", default=["val", "test"])
    return parser.parse_args()


if __name__ == "__main__":
    main()
