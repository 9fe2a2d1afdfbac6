r"""Which sampler, and which granularity of the space, is the best for a given number of trials.

On generated images, with the demo's detector. A trial is cheap: weights reconstructed, nothing trained. All
begin with the same warm starts. Each search is a run directory in --out, so what was stopped goes on.

    python scripts/bench/samplers.py --out runs/bench-samplers

After n trials: the best proxy mAP within the budget, and the hypervolume, which is the part of the square
(mAP from 0 to 1, GFLOPs from none to the dense detector's) that the trials dominate.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

import numpy as np
from parts import changed
from rich.console import Console
from rich.table import Table

from autoprune.config import Config, make_config
from autoprune.data import demo_detector
from autoprune.data.shapes import make_shapes
from autoprune.run.results import load_result
from autoprune.search.pipeline import search
from autoprune.space.derive import derive_space
from autoprune.space.file import Granularity
from autoprune.space.render import save_space
from autoprune.study.records import Record
from autoprune.task.pruning_task import load_task
from autoprune.task.scoring import score_channels

SAMPLERS = ("thompson", "tpe", "nsga2", "gp", "qmc", "random")
GRANULARITIES: tuple[Granularity, ...] = ("layer", "block", "stage")
IMAGES = 4  # that a trial's weights are reconstructed on


def main() -> None:
    given = arguments()
    data = make_shapes(
        given.out / "data",
        demo_detector.DATA_SEED,
        train=256,
        val=given.images,
        test=1,
        size=demo_detector.IMAGE_SIZE,
    )
    cases: list[tuple[str, Granularity]] = [(sampler, "layer") for sampler in given.samplers.split(",")]
    cases += [("thompson", granularity) for granularity in GRANULARITIES[1:]]
    runs_by_case: dict[tuple[str, str], list[list[Record]]] = {}
    dense = 0.0
    for seed in range(given.seeds):
        for sampler, granularity in cases:
            config = settings(given, data, sampler, granularity, seed)
            search(config)
            result = load_result(config.out)
            records = [record for record in result.records if record.counts and record.rungs]
            runs_by_case.setdefault((sampler, granularity), []).append(records)
            dense = load_task(config).graph.gflops()
            show(runs_by_case, dense, given)


def settings(
    given: argparse.Namespace, data: Path, sampler: str, granularity: Granularity, seed: int
) -> Config:
    """One search; its space is written first, where it is not there yet."""
    model = demo_detector.MODEL
    config = make_config(
        model=model.name,
        model_arguments=model.arguments,
        weights=str(demo_detector.WEIGHTS),
        data=data,
        out=given.out / f"{sampler}-{granularity}-{seed}",
        seed=seed,
        sampler=sampler,
        trials=given.trials,
        budget_gflops=given.budget,
        rungs=(0,),
        importance_images=64,
        reconstruct_images=IMAGES,
    )
    path = given.out / f"space-{granularity}-{seed}.yaml"
    if not path.exists():
        task = load_task(config)
        scores = score_channels(task, config.criterion, given.out / f"importance-{seed}.safetensors")
        file = derive_space(
            task.graph,
            scores,
            task.spec,
            task.input_size,
            config.criterion,
            granularity,
        )
        save_space(path, file, task.graph, scores)
    return changed(config, space=path)


def hypervolume(records: Sequence[Record], dense: float) -> float:
    """Fraction of the square that the trials dominate."""
    points = sorted((record.metrics["gflops"] / dense, record.metrics["map"]) for record in records)
    costs = np.array([cost for cost, _ in points] + [1.0])
    best = np.maximum.accumulate([score for _, score in points])
    return float(np.sum(np.diff(costs) * best))


def show(
    runs_by_case: dict[tuple[str, str], list[list[Record]]], dense: float, given: argparse.Namespace
) -> None:
    """Prints what is there so far."""
    counts = [given.trials // 4, given.trials // 2, given.trials]
    heads = [f"{what}, {count} trials" for what in ("mAP", "hypervolume") for count in counts]
    table = Table("sampler", "granularity", "seeds", *heads, title=f"{given.budget} of the GFLOPs")
    for (sampler, granularity), runs in runs_by_case.items():
        best = [[100 * max(r.metrics["map"] for r in run[:n]) for run in runs] for n in counts]
        volume = [[hypervolume(run[:n], dense) for run in runs] for n in counts]
        table.add_row(
            sampler,
            granularity,
            str(len(runs)),
            *(spread(values, 1) for values in best),
            *(spread(values, 4) for values in volume),
        )
    Console(width=150).print(table)


def spread(values: Sequence[float], digits: int) -> str:
    """Mean and standard deviation."""
    return f"{mean(values):.{digits}f}" + (f" ± {stdev(values):.{digits}f}" if len(values) > 1 else "")


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench-samplers"))
    parser.add_argument("--samplers", default=",".join(SAMPLERS))
    parser.add_argument("--budget", default="33%")
    parser.add_argument("--trials", type=int, default=64)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--images", type=int, default=128, help="validation images")
    return parser.parse_args()


if __name__ == "__main__":
    main()
