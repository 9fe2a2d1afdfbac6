r"""Is a search for latency worth it? Against a search for GFLOPs that ends at the same measured latency.

    python scripts/bench/latency_search.py --data ../shared/data/bccd \
        --weights ../shared/models/retinanet_resnet18_bccd.safetensors --out runs/bench-latency-search

One search has `budget_latency_ms`. Another, with the same space, scores, trials, rungs and seed, has a budget
on the GFLOPs, chosen so that its policy has the same latency: at first by the latency model on knapsack
policies, then by interleaved measurement, with another search where it is more than --tolerance off. Both
policies are recovered with the same settings, and dense and recovered detectors are timed interleaved. Every
part is one JSON file in --out, so a stopped run resumes; a seed seeds everything random.
On a machine with other work, ``--cpu-time`` counts the process' own seconds; right with one thread only.
"""

import argparse
import json
import os
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
from parts import Result, add_detector, changed, guard, once, score_dense, score_test
from rich.console import Console
from rich.table import Table

from autoprune import importance, progress
from autoprune.config import Config, make_config
from autoprune.cost.budget import Budget
from autoprune.export import load
from autoprune.graph import prune
from autoprune.latency import fit as latency_fit
from autoprune.latency.model import LatencyModel
from autoprune.latency.networks import measure_networks
from autoprune.latency.tables import measure_tables, time_passes
from autoprune.policy import Policy
from autoprune.recovery import recover_policy as recovery
from autoprune.recovery.recover_policy import recover_policy
from autoprune.run.directory import RunDirectory
from autoprune.runtimes.sessions import RUNTIMES
from autoprune.search.pipeline import search
from autoprune.space.file import SpaceFile
from autoprune.space.one_shot import knapsack, widths_of
from autoprune.space.resolve import resolve
from autoprune.task import evaluator as evaluator
from autoprune.task.pruning_task import PruningTask, load_task

HALVINGS = 24


class Case:
    """Both searches of one seed.

    Args:
        task: dense detector and data, with the settings that both searches share.
        given: the command line.
    """

    def __init__(self, task: PruningTask, given: argparse.Namespace) -> None:
        self.task, self.given, self.config = task, given, task.config
        self.out: Path = given.out / f"seed-{self.config.seed}"
        self.first = RunDirectory(self.out / "latency")

    def search(self, name: str, **changes: Any) -> Result:
        """The best policy of a search."""
        run = self.out / name
        result = search(changed(self.config, **changes, out=run))
        if result.best is None:
            raise SystemExit(f"{run}: no trial was completed; `autoprune front {run}` says why")
        best = result.best
        return {"policy": str(best.path), "origin": best.origin, "proxy": best.metrics["map"]}

    def for_latency(self) -> Result:
        """What the search under a budget on latency finds."""
        objectives = ("map", "latency_ms")
        return self.search("latency", budget_latency_ms=self.given.budget, objectives=objectives)

    def for_gflops(self, target: Mapping[str, Any]) -> Result:
        """What a search under a budget on the GFLOPs finds that takes as long as the ``target``."""
        gflops, tried = self.level(target), []
        for number in range(self.given.searches):
            trial = once(
                self.out / f"gflops-{number}.json",
                partial(self.search_gflops, f"gflops-{number}", gflops, target),
            )
            tried.append(trial)
            if abs(trial["ratio"] - 1) <= self.given.tolerance:
                break
            gflops = next_level(tried)
        return min(tried, key=lambda one: abs(one["ratio"] - 1))

    def search_gflops(self, name: str, gflops: float, target: Mapping[str, Any]) -> Result:
        """One search under a budget on the GFLOPs, and its policy's time over that of the ``target``."""
        result = self.search(name, budget_gflops=f"{gflops:.5f}", space=self.first.space_file)
        mine, other = (Policy.load(Path(one["policy"])) for one in (result, target))
        models = [prune(self.task.model, self.task.graph, each.keep) for each in (mine, other)]
        first, second = self.time(models)
        return {**result, "gflops": gflops, "ratio": first / second}

    def level(self, target: Mapping[str, Any]) -> float:
        """The GFLOPs at which the knapsack's policy is predicted to take as long as the ``target``."""
        model, space = self.model, self.space
        kept = {**{n: g.width for n, g in self.task.graph.groups.items()}, **self.kept(target)}
        wanted = float(model(np.array([kept[name] for name in space.names])))
        low, high = (float(space.cost("gflops", widths)) for widths in (space.lowest, space.dense))
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            start = knapsack(space, self.scores, [Budget("gflops", middle)], self.config.criterion)
            low, high = (middle, high) if float(model(widths_of(space, start))) <= wanted else (low, middle)
        return (low + high) / 2

    @staticmethod
    def kept(policy: Mapping[str, Any]) -> Mapping[str, int]:
        """Widths of a policy's pruned groups."""
        return Policy.load(Path(policy["policy"])).kept_widths

    @cached_property
    def scores(self) -> importance.Importance:
        """The scores that the first search made."""
        scores = importance.load(self.first.importance_file, self.config.criterion)
        assert scores is not None
        return scores

    @cached_property
    def space(self) -> Any:
        """The space that both search."""
        return resolve(SpaceFile.load(self.first.space_file), self.task.graph, self.scores)

    @cached_property
    def model(self) -> LatencyModel:
        """The latency model of the first search."""
        model = LatencyModel.load(self.first.latency_file, self.task.graph)
        assert model is not None
        return model

    def time(self, models: list[Any]) -> list[float]:
        """Median milliseconds of detectors, interleaved."""
        clock = time.process_time if self.given.cpu_time else time.perf_counter
        latencies = measure_networks(models, self.task.latency_setup, self.given.passes, clock)
        return [latency.median_ms for latency in latencies]

    def recovered(self, name: str, policy: Mapping[str, Any]) -> Result:
        """Recovers a policy and scores it."""
        keep = {group: tuple(kept) for group, kept in Policy.load(Path(policy["policy"])).keep.items()}
        folder = self.out / "recovered" / name
        label = f"recovery of {name}"
        result = recover_policy(self.task, keep, folder, self.scores, label=label, space=self.space)
        test = score_test(load(folder).to(self.task.device), self.task)
        return {"val": result.map, "test": test, "folder": str(folder), **self.task.costs(keep)}

    def timed(self, folders: Mapping[str, str]) -> Result:
        """Milliseconds of the dense and of the recovered detectors, interleaved."""
        device = self.task.device
        models = [self.task.model, *(load(folder).to(device) for folder in folders.values())]
        return dict(zip(["dense", *folders], self.time(models), strict=True))


def next_level(tried: list[Result]) -> float:
    """The GFLOPs to try next: between what was too fast and what was too slow, or a step beyond."""
    fast = max((one for one in tried if one["ratio"] <= 1), key=lambda one: one["gflops"], default=None)
    slow = min((one for one in tried if one["ratio"] > 1), key=lambda one: one["gflops"], default=None)
    if fast is None or slow is None or fast["gflops"] >= slow["gflops"]:
        last = tried[-1]
        # the part of the time that no GFLOPs decide makes the ratio itself too small a step
        return float(last["gflops"] * (1 + 1.2 * (1 / last["ratio"] - 1)))
    fraction = (1 - fast["ratio"]) / (slow["ratio"] - fast["ratio"])
    return float(fast["gflops"] + fraction * (slow["gflops"] - fast["gflops"]))


def count_cpu_time() -> None:
    """Has searches and recoveries count the process' own seconds."""
    clock = time.process_time
    networks = partial(measure_networks, clock=clock)
    for module in (latency_fit, evaluator, recovery):
        module.measure_networks = networks  # type: ignore[attr-defined]
    seconds = partial(time_passes, clock=clock)
    latency_fit.measure_tables = partial(measure_tables, seconds=seconds)  # type: ignore[attr-defined]


def main() -> None:
    given = arguments()
    if given.cpu_time:
        count_cpu_time()
    kept = {name: str(value) for name, value in vars(given).items() if name not in ("out", "seeds")}
    guard(given.out / "settings.json", kept)
    os.environ["AUTOPRUNE_CACHE"] = str(given.out / "cache")  # its own: seconds may be of another clock
    with progress.show(Console(stderr=True)):
        task = load_task(settings(given, 0))
        dense = once(given.out / "dense.json", partial(score_dense, task))
        rows = []
        for seed in range(given.seeds):
            case = Case(replace(task, config=settings(given, seed)), given)
            first = once(case.out / "latency.json", case.for_latency)
            policies = {
                "latency": first,
                "GFLOPs": once(case.out / "gflops.json", partial(case.for_gflops, first)),
            }
            done = {
                name: once(case.out / f"recovered-{name}.json", partial(case.recovered, name, one))
                for name, one in policies.items()
            }
            folders = {name: one["folder"] for name, one in done.items()}
            times = once(case.out / "times.json", partial(case.timed, folders))
            rows.append(
                {
                    name: {**one, "ms": times[name], "share": times[name] / times["dense"]}
                    for name, one in {"dense": dense, **done}.items()
                }
            )
    show(rows, given)


def show(rows: list[dict[str, Any]], given: argparse.Namespace) -> None:
    """Prints the means over the seeds."""
    title = f"{given.budget} latency, {given.runtime}, {len(rows)} seeds, {given.steps} steps"
    table = Table("searched for", "ms", "of dense", "GFLOPs", "val mAP", "test mAP", title=title)
    for name in rows[0]:
        ms, fraction, gflops, val = (
            mean(row[name][key] for row in rows) for key in ("ms", "share", "gflops", "val")
        )
        tests = [row[name]["test"] for row in rows]
        test = None if None in tests else mean(tests)
        table.add_row(name, f"{ms:.2f}", f"{fraction:.1%}", f"{gflops:.3f}", _points(val), _points(test))
    Console(width=100).print(table)


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.2f}"


def settings(given: argparse.Namespace, seed: int) -> Config:
    """What both searches and recoveries share."""
    return make_config(
        model=given.model,
        model_arguments=json.loads(given.model_arguments),
        weights=given.weights,
        data=given.data,
        device=given.device,
        threads=given.threads,
        latency_runtime=given.runtime,
        trials=given.trials,
        rungs=given.rungs,
        steps=given.steps,
        importance_images=given.importance_images,
        proxy_images=given.proxy_images,
        seed=seed,
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_detector(parser)
    parser.add_argument("--out", type=Path, default=Path("runs/bench-latency-search"))
    parser.add_argument("--budget", default="60%", help="of the dense detector's latency")
    parser.add_argument("--runtime", default="onnxruntime", choices=list(RUNTIMES))
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cpu-time", action="store_true", help="count the process' own seconds")
    parser.add_argument("--trials", type=int, default=16)
    parser.add_argument(
        "--rungs", type=lambda text: tuple(int(part) for part in text.split(",")), default=(0,)
    )
    parser.add_argument("--steps", type=int, default=100, help="of each recovery")
    parser.add_argument("--importance-images", type=int, default=128)
    parser.add_argument("--proxy-images", type=int, help="default: all of val")
    parser.add_argument("--passes", type=int, default=25, help="of an interleaved timing")
    parser.add_argument("--tolerance", type=float, default=0.03, help="between the two policies' latencies")
    parser.add_argument("--searches", type=int, default=4, help="for GFLOPs, at most")
    parser.add_argument("--seeds", type=int, default=1, help="seeds 0, 1, …")
    return parser.parse_args()


if __name__ == "__main__":
    main()
