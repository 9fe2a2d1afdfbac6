"""Latency: do two measurements agree, does the model predict it, and what do saved GFLOPs buy?

    python scripts/bench/latency.py --out runs/bench-latency

For each runtime, three parts. `agree` times one network as if it were two, in the same turns, and takes the
median of the ratios of the turns. `predict` makes the search's latency model and holds it against random
policies that it never saw, timed in the same turns as those that correct it; a straight line over the GFLOPs
stands beside it. `buy` prunes every group of a larger detector by the same ratio to 50% and 33% of the
GFLOPs. All weights are fresh: a network's time does not depend on them.

Each part leaves a JSON file in --out; those that are there are not measured again. On a machine with other
work, ``--cpu-time`` counts the process' own seconds, which is right with one thread alone. On a GPU:

    python scripts/bench/latency.py --device cuda --runtimes torch --precision bfloat16 --batches 1,16
"""

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from parts import Result, guard, once
from rich.console import Console
from rich.table import Table

from autoprune import progress
from autoprune.config import ModelSpec
from autoprune.cost.budget import Budget
from autoprune.data.images import resized_size
from autoprune.detectors import build, detector_inputs, resize_rule
from autoprune.graph import analyze
from autoprune.latency.fit import NETWORKS, prune_to, sample_widths
from autoprune.latency.machine import label
from autoprune.latency.model import (
    correct,
    features,
    fractions_of,
    measure_tables,
    time_passes,
)
from autoprune.latency.operators import find_calls
from autoprune.latency.runners import NETWORK, Run, in_file, in_torch
from autoprune.latency.timing import WARMUP, Latency, interleaved
from autoprune.space.derive import derive_space, resolve
from autoprune.space.one_shot import uniform

SHARES = (0.5, 0.33)


class Bench:
    """A dense detector, its graph and a search space without importance, timed in a runtime.

    Args:
        options: the command line.
        runtime: where networks run.
        model: name of the detector.
        size: height and width of the images, such as ``192x256``.
        batch: images at once.
    """

    def __init__(
        self, options: argparse.Namespace, runtime: str, model: str, size: str, batch: int = 1
    ) -> None:
        """Builds the detector and analyses it."""
        self.options, self.runtime, self.batch = options, runtime, batch
        self.device = torch.device(options.device)
        self.clock: Callable[[], float] = time.process_time if options.cpu_time else time.perf_counter
        height, width = (int(side) for side in size.split("x"))
        self.size = (height, width)
        arguments = {"min_size": min(self.size), "max_size": max(self.size)}
        spec = ModelSpec(name=model, arguments=arguments, num_classes=options.classes)
        self.model = build(spec).eval()
        self.graph = analyze(self.model, detector_inputs(self.size))
        scores = {name: np.ones(group.width) for name, group in self.graph.prunable.items()}
        self.space = resolve(derive_space(self.graph, scores, spec, self.size), self.graph, scores)

    @property
    def where(self) -> str:
        """What was measured on."""
        threads = self.options.threads
        text = label(self.runtime, self.device, threads, self.batch, self.size)
        return text if self.options.precision == "float32" else f"{text}, {self.options.precision}"

    def networks(self, widths: Sequence[np.ndarray], passes: int) -> list[Latency]:
        """Times networks of these widths, in turns."""
        with self.runs(widths) as runs:
            return [stages[NETWORK] for stages in interleaved(runs, passes).values()]

    @contextmanager
    def runs(self, widths: Sequence[np.ndarray]) -> Iterator[dict[str, Run]]:
        """One timed pass of networks of these widths, by their places."""
        runs: dict[str, Run] = {}
        images = detector_inputs(self.size)[0] * self.batch
        with ExitStack() as stack:
            if self.options.precision == "bfloat16":
                stack.enter_context(torch.autocast(self.device.type, torch.bfloat16))
            for number, each in enumerate(widths):
                model = prune_to(self.model, self.graph, each)
                if self.runtime == "torch":
                    placed = [image.to(self.device) for image in images]
                    runs[str(number)] = in_torch(model.to(self.device), placed, self.clock)
                    continue
                folder = Path(stack.enter_context(TemporaryDirectory()))
                inside = resized_size(self.size, resize_rule(model))
                runs[str(number)] = in_file(
                    model,
                    images,
                    inside,
                    self.runtime,
                    str(self.device),
                    self.options.threads,
                    folder,
                    self.clock,
                )
            yield runs


def agree(options: argparse.Namespace, runtime: str, batch: int) -> Result:
    """One network as if it were two."""
    bench = Bench(options, runtime, options.model, options.size, batch)
    taken: dict[str, list[float]] = {"0": [], "1": []}

    def noted(name: str, run: Run) -> Run:
        def once() -> dict[str, float]:
            found = run()
            taken[name].append(found[NETWORK])
            return found

        return once

    with bench.runs([bench.space.dense] * 2) as runs:
        interleaved({name: noted(name, run) for name, run in runs.items()}, options.passes)
    first, second = (np.array(times[WARMUP:]) for times in taken.values())
    ratio = float(np.median(first / second))
    return {"where": bench.where, "ratio": ratio, "ms": 1e3 * float(np.median(first))}


def predict(options: argparse.Namespace, runtime: str, batch: int) -> Result:
    """The latency model against policies that it never saw, and a straight line over GFLOPs beside it."""
    bench = Bench(options, runtime, options.model, options.size, batch)
    graph, space = bench.graph, bench.space
    calls = find_calls(bench.model, detector_inputs(bench.size)[0])
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        tables = measure_tables(
            calls,
            runtime,
            bench.device,
            options.threads,
            Path(folder),
            partial(time_passes, clock=bench.clock),
        )
    took = time.perf_counter() - start
    widths = sample_widths(space, NETWORKS) + sample_widths(space, options.policies + 2, seed=1)[2:]
    measured = np.array([found.median_ms for found in bench.networks(widths, options.passes)])
    found = features(graph, fractions_of(graph, calls), tables, np.stack(widths))
    gflops = np.asarray(space.cost("gflops", np.stack(widths)))
    line = np.column_stack([gflops, np.ones(len(widths))])
    result: Result = {"where": bench.where, "operators_s": took, "dense_ms": measured[0]}
    for name, inputs in (("model", found), ("line", line)):
        said = inputs[NETWORKS:] @ np.array(correct(inputs[:NETWORKS], measured[:NETWORKS]))
        off = np.abs(said / measured[NETWORKS:] - 1)
        rank = np.corrcoef(_ranks(said), _ranks(measured[NETWORKS:]))[0, 1]
        result[name] = {"mean_error": off.mean(), "largest_error": off.max(), "rank_correlation": rank}
    return result


def buy(options: argparse.Namespace, runtime: str, batch: int) -> Result:
    """What uniform pruning to a fraction of the GFLOPs does to the time."""
    bench = Bench(options, runtime, options.buy_model, options.buy_size, batch)
    dense = float(bench.space.cost("gflops", bench.space.dense))
    widths = [uniform(bench.space, [Budget("gflops", fraction * dense)]).widths for fraction in SHARES]
    times = bench.networks([bench.space.dense, *widths], options.buy_passes)
    speeds = {
        f"{fraction:.0%}": times[0].median_ms / found.median_ms
        for fraction, found in zip(SHARES, times[1:], strict=True)
    }
    return {
        "where": bench.where,
        "gflops": dense,
        "dense_ms": times[0].median_ms,
        "ms": [found.median_ms for found in times[1:]],
        "speed": speeds,
    }


PARTS: dict[str, Callable[[argparse.Namespace, str, int], Result]] = {
    "agree": agree,
    "predict": predict,
    "buy": buy,
}


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def row_of(part: str, found: Result, options: argparse.Namespace) -> tuple[str, str, str, str]:
    """What was measured, where, the figures, and what was asked."""
    if part == "agree":
        figures = f"{abs(found['ratio'] - 1):.1%} apart ({found['ms']:.1f} ms)"
        return "one network twice", found["where"], figures, "at most 3%"
    if part == "predict":
        told = [
            f"{name}: mean error {one['mean_error']:.1%}, most {one['largest_error']:.1%}, "
            f"rank correlation {one['rank_correlation']:.3f}"
            for name, one in (("model", found["model"]), ("line over GFLOPs", found["line"]))
        ]
        asked = "mean error at most 8%, rank correlation at least 0.95"
        return f"predicted, {options.policies} policies", found["where"], "\n".join(told), asked
    told = [f"dense {found['dense_ms']:.1f} ms, {found['gflops']:.1f} GFLOPs"]
    told += [
        f"at {fraction}: {speed:.2f} times as fast, {speed * float(fraction[:-1]) / 100:.0%} of ideal"
        for fraction, speed in found["speed"].items()
    ]
    return f"what GFLOPs buy, {options.buy_model}", found["where"], "\n".join(told), ""


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    out: Path = options.out
    kept = {name: str(value) for name, value in vars(options).items() if name not in ("out", "parts")}
    guard(out / "settings.json", {name: kept[name] for name in kept if name not in ("runtimes", "batches")})
    table = Table("what", "where", "measured", "asked", show_lines=True)
    with progress.show(Console(stderr=True)):
        for part in options.parts:
            for runtime in options.runtimes:
                for batch in options.batches if part == "buy" else (1,):
                    file = out / f"{part}-{runtime}-{batch}.json"
                    found = once(file, partial(PARTS[part], options, runtime, batch))
                    table.add_row(*row_of(part, found, options))
    Console(width=150).print(table)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        return text.split(",")

    parser.add_argument("--out", type=Path, default=Path("runs/bench-latency"))
    parser.add_argument("--parts", type=names, default=list(PARTS))
    parser.add_argument("--runtimes", type=names, default=["torch", "onnxruntime"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", default="float32", choices=["float32", "bfloat16"], help="of torch")
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--model", default="retinanet_resnet18_fpn", help="of `agree` and `predict`")
    parser.add_argument("--size", default="192x256")
    parser.add_argument("--passes", type=int, default=15)
    parser.add_argument("--policies", type=int, default=30, help="of `predict`")
    parser.add_argument("--buy-model", default="retinanet_resnet50_fpn")
    parser.add_argument("--buy-size", default="800x800")
    parser.add_argument("--buy-passes", type=int, default=7)
    parser.add_argument(
        "--batches", type=lambda text: [int(part) for part in text.split(",")], default=[1], help="of `buy`"
    )
    given = parser.parse_args()
    if unknown := {*given.parts} - {*PARTS}:
        parser.error(f"there is no part {unknown.pop()}; choose {', '.join(PARTS)}")
    if given.precision != "float32" and {*given.runtimes} != {"torch"}:
        parser.error("--precision is torch's; give --runtimes torch")
    return given


if __name__ == "__main__":
    main()
