"""Latency: do two measurements agree, does the model predict it, and how much time do saved GFLOPs save?

    python scripts/bench/latency.py --out runs/bench-latency

Three parts for each runtime. `agree` times one network as if it were two, interleaved, and takes the median
ratio. `predict` fits the search's latency model and compares it with random policies that it never saw, timed
interleaved with those that it was fitted to; a straight line over the GFLOPs is the baseline. `buy` prunes
every group of a larger detector by the same ratio to 50% and 33% of the GFLOPs. All weights are random: a
network's time does not depend on them.

Each part writes a JSON file to --out; parts whose file exists are not measured again. On a machine with other
work, ``--cpu-time`` counts the process' own seconds, which is right with one thread only. On a GPU:

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
from autoprune.detectors import build, detector_inputs, pixel_resizing
from autoprune.graph import analyze
from autoprune.images.decode import resized_size
from autoprune.latency.fit import NETWORKS
from autoprune.latency.machine import LatencySetup
from autoprune.latency.model import (
    correct,
    features,
    fractions_of,
)
from autoprune.latency.networks import prune_to, sample_widths
from autoprune.latency.operators import find_calls
from autoprune.latency.runners import NETWORK, Run, in_file, in_torch
from autoprune.latency.tables import measure_tables, time_passes
from autoprune.latency.timing import WARMUP, Latency, interleaved
from autoprune.space.derive import derive_space
from autoprune.space.one_shot import uniform, widths_of
from autoprune.space.resolve import resolve

FRACTIONS = (0.5, 0.33)


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
        self.options = options
        self.clock: Callable[[], float] = time.process_time if options.cpu_time else time.perf_counter
        height, width = (int(side) for side in size.split("x"))
        self.setup = LatencySetup(
            runtime, torch.device(options.device), options.threads, (height, width), batch
        )
        arguments = {"min_size": min(height, width), "max_size": max(height, width)}
        spec = ModelSpec(name=model, arguments=arguments, num_classes=options.classes)
        self.model = build(spec).eval()
        self.graph = analyze(self.model, detector_inputs(self.setup.input_size))
        scores = {name: np.ones(group.width) for name, group in self.graph.prunable.items()}
        self.space = resolve(derive_space(self.graph, scores, spec, (height, width)), self.graph, scores)

    @property
    def label(self) -> str:
        """What was measured on."""
        text = self.setup.label
        return text if self.options.precision == "float32" else f"{text}, {self.options.precision}"

    def networks(self, widths: Sequence[np.ndarray], passes: int) -> list[Latency]:
        """Times networks of these widths, interleaved."""
        with self.runs(widths) as runs:
            return [stages[NETWORK] for stages in interleaved(runs, passes).values()]

    @contextmanager
    def runs(self, widths: Sequence[np.ndarray]) -> Iterator[dict[str, Run]]:
        """One timed pass of each network of these widths, by its number."""
        runs: dict[str, Run] = {}
        setup = self.setup
        images = detector_inputs(setup.input_size)[0] * setup.batch
        with ExitStack() as stack:
            if self.options.precision == "bfloat16":
                stack.enter_context(torch.autocast(setup.device.type, torch.bfloat16))
            for number, each in enumerate(widths):
                model = prune_to(self.model, self.graph, each)
                if setup.runtime == "torch":
                    placed = [image.to(setup.device) for image in images]
                    runs[str(number)] = in_torch(model.to(setup.device), placed, self.clock)
                    continue
                folder = Path(stack.enter_context(TemporaryDirectory()))
                network_size = resized_size(setup.input_size, pixel_resizing(model))
                runs[str(number)] = in_file(
                    model,
                    images,
                    network_size,
                    setup.runtime,
                    str(setup.device),
                    setup.threads,
                    folder,
                    self.clock,
                )
            yield runs


def agree(options: argparse.Namespace, runtime: str, batch: int) -> Result:
    """One network as if it were two."""
    bench = Bench(options, runtime, options.model, options.size, batch)
    taken: dict[str, list[float]] = {"0": [], "1": []}

    def recorded(name: str, run: Run) -> Run:
        def once() -> dict[str, float]:
            seconds = run()
            taken[name].append(seconds[NETWORK])
            return seconds

        return once

    with bench.runs([bench.space.dense] * 2) as runs:
        interleaved({name: recorded(name, run) for name, run in runs.items()}, options.passes)
    first, second = (np.array(times[WARMUP:]) for times in taken.values())
    ratio = float(np.median(first / second))
    return {"where": bench.label, "ratio": ratio, "ms": 1e3 * float(np.median(first))}


def predict(options: argparse.Namespace, runtime: str, batch: int) -> Result:
    """The latency model on policies that it never saw, and a straight line over GFLOPs as the baseline."""
    bench = Bench(options, runtime, options.model, options.size, batch)
    graph, space = bench.graph, bench.space
    calls = find_calls(bench.model, detector_inputs(bench.setup.input_size)[0])
    start = time.perf_counter()
    with TemporaryDirectory() as folder:
        seconds = partial(time_passes, clock=bench.clock)
        tables = measure_tables(calls, bench.setup, Path(folder), seconds)
    took = time.perf_counter() - start
    widths = sample_widths(space, NETWORKS) + sample_widths(space, options.policies + 2, seed=1)[2:]
    measured = np.array([latency.median_ms for latency in bench.networks(widths, options.passes)])
    inputs_of_model = features(graph, fractions_of(graph, calls), tables, np.stack(widths))
    gflops = np.asarray(space.cost("gflops", np.stack(widths)))
    line = np.column_stack([gflops, np.ones(len(widths))])
    result: Result = {"where": bench.label, "operators_s": took, "dense_ms": measured[0]}
    for name, inputs in (("model", inputs_of_model), ("line", line)):
        predicted = inputs[NETWORKS:] @ np.array(correct(inputs[:NETWORKS], measured[:NETWORKS]))
        errors = np.abs(predicted / measured[NETWORKS:] - 1)
        rank = np.corrcoef(_ranks(predicted), _ranks(measured[NETWORKS:]))[0, 1]
        result[name] = {
            "mean_error": errors.mean(),
            "largest_error": errors.max(),
            "rank_correlation": rank,
        }
    return result


def buy(options: argparse.Namespace, runtime: str, batch: int) -> Result:
    """What uniform pruning to a fraction of the GFLOPs does to the latency."""
    bench = Bench(options, runtime, options.buy_model, options.buy_size, batch)
    dense = float(bench.space.cost("gflops", bench.space.dense))
    starts = [uniform(bench.space, [Budget("gflops", fraction * dense)]) for fraction in FRACTIONS]
    widths = [widths_of(bench.space, start) for start in starts]
    times = bench.networks([bench.space.dense, *widths], options.buy_passes)
    speeds = {
        f"{fraction:.0%}": times[0].median_ms / latency.median_ms
        for fraction, latency in zip(FRACTIONS, times[1:], strict=True)
    }
    return {
        "where": bench.label,
        "gflops": dense,
        "dense_ms": times[0].median_ms,
        "ms": [latency.median_ms for latency in times[1:]],
        "speed": speeds,
    }


PARTS: dict[str, Callable[[argparse.Namespace, str, int], Result]] = {
    "agree": agree,
    "predict": predict,
    "buy": buy,
}


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def row_of(part: str, result: Result, options: argparse.Namespace) -> tuple[str, str, str, str]:
    """Cells of the table: what was measured, where, the figures, and the target."""
    if part == "agree":
        figures = f"{abs(result['ratio'] - 1):.1%} apart ({result['ms']:.1f} ms)"
        return "one network twice", result["where"], figures, "at most 3%"
    if part == "predict":
        lines = [
            f"{name}: mean error {one['mean_error']:.1%}, most {one['largest_error']:.1%}, "
            f"rank correlation {one['rank_correlation']:.3f}"
            for name, one in (("model", result["model"]), ("line over GFLOPs", result["line"]))
        ]
        target = "mean error at most 8%, rank correlation at least 0.95"
        return f"predicted, {options.policies} policies", result["where"], "\n".join(lines), target
    lines = [f"dense {result['dense_ms']:.1f} ms, {result['gflops']:.1f} GFLOPs"]
    lines += [
        f"at {fraction}: {speed:.2f} times as fast, {speed * float(fraction[:-1]) / 100:.0%} of ideal"
        for fraction, speed in result["speed"].items()
    ]
    return f"what fewer GFLOPs save, {options.buy_model}", result["where"], "\n".join(lines), ""


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    out: Path = options.out
    varying = ("out", "parts", "runtimes", "batches")
    guard(out / "settings.json", {k: str(v) for k, v in vars(options).items() if k not in varying})
    table = Table("part", "setup", "measured", "target", show_lines=True)
    with progress.show(Console(stderr=True)):
        for part in options.parts:
            for runtime in options.runtimes:
                for batch in options.batches if part == "buy" else (1,):
                    file = out / f"{part}-{runtime}-{batch}.json"
                    result = once(file, partial(PARTS[part], options, runtime, batch))
                    table.add_row(*row_of(part, result, options))
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
