r"""The report of a long run: how long `autoprune report` takes, and how large the page is.

The run is a real one on RetinaNet-R50 (its space, ledger, sampler and files), but trials are scored by a
formula instead of training; a few are recovered for a handful of steps. Example:

    python scripts/bench/report.py --trials 200 --out runs/report
"""

import argparse
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from autoprune.config import ModelSpec, make_config
from autoprune.data.shapes import make_shapes
from autoprune.detectors import build, save_state
from autoprune.recovery.recover import recover
from autoprune.search.pipeline import search
from autoprune.task.evaluator import PolicyEvaluator

SIDE = 128  # pixels of the detector's input; the stored images have four times as many per side
ARGUMENTS = {"min_size": SIDE, "max_size": SIDE}


def formula(
    self: PolicyEvaluator, widths: dict[str, int], rung: int, state: Any, repeat: int = 0
) -> tuple[dict[str, float], None]:
    """A mAP that falls with the importance removed, and rises with the rung."""
    keep, scores = self.keep(widths), self.importance
    lost = [1 - scores[name][list(kept)].sum() / scores[name].sum() for name, kept in keep.items()]
    digest = hashlib.sha256(json.dumps([*map(len, keep.values())]).encode()).digest()
    noise = np.random.default_rng(int.from_bytes(digest[:4])).normal(0, 0.01)
    score = 0.4 * (1 - float(np.mean(lost))) * (0.5 + 0.5 * rung) + noise
    metrics = {"map": max(score, 0.0), "map50": max(1.4 * score, 0.0), **self.task.costs(keep)}
    return {**metrics, "training_s": 0.0, "evaluation_s": 0.0, "other_s": 0.0}, None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=200)
    parser.add_argument("--recovered", type=int, default=3, help="trials that are recovered")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/report"))
    arguments = parser.parse_args()
    run: Path = arguments.out / "run"
    data = make_shapes(arguments.out / "data", seed=0, train=8, val=8, size=4 * SIDE)
    weights = arguments.out / "dense.safetensors"
    spec = ModelSpec(name="retinanet_resnet50_fpn", arguments=ARGUMENTS, num_classes=6)
    if not weights.exists():
        save_state(build(spec), weights)
    config = make_config(
        model=spec.name,
        model_arguments=ARGUMENTS,
        weights=str(weights),
        data=data,
        out=run,
        trials=arguments.trials,
        budget_gflops=("50%", "33%"),
        criterion="l2",
        device="cpu",
        batch_size=2,
        recalibration_images=4,
        importance_images=2,
    )
    PolicyEvaluator.evaluate = formula  # type: ignore[assignment,method-assign]
    result = search(config)
    chosen = [record.number for record in result.records if record.state == "complete"][: arguments.recovered]
    recover(run, chosen, steps=4)

    seconds, page = [], run / "report.html"
    for _ in range(arguments.repeats):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "autoprune", "report", str(run)], check=True)
        seconds.append(time.perf_counter() - started)
    size = page.stat().st_size / 1e6
    print(f"{len(result.records)} trials, {len(chosen)} recovered, {page}")
    print(f"page {size:.2f} MB, built in {median(seconds):.1f} s (median of {arguments.repeats})")


if __name__ == "__main__":
    main()
