"""Latency: do two measurements agree, does the model predict it, and what do saved GFLOPs buy?

    python scripts/bench/latency.py agree   --runtime torch
    python scripts/bench/latency.py predict --runtime onnxruntime --policies 30
    python scripts/bench/latency.py buy     --model retinanet_resnet50_fpn --size 800x800 --runtime torch

`agree` times one network as if it were two, in the same turns. `predict` makes the search's latency model and
holds it against random policies that it never saw, timed in the same turns as those that correct it. `buy`
prunes every group by the same ratio to 50% and 33% of the GFLOPs. All weights are fresh: a network's time
does not depend on them. On a machine with other work, ``--cpu-time`` counts the process' own seconds.
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
from rich.console import Console
from torch import nn

from autoprune import progress
from autoprune.config import ModelSpec
from autoprune.cost.budget import Budget
from autoprune.cost.latency import Latency, in_turns
from autoprune.data.images import resized_size
from autoprune.deploy.machine import label
from autoprune.deploy.operators import find_calls
from autoprune.deploy.runners import NETWORK, Run, in_file, in_torch
from autoprune.graph import ChannelGraph, analyze
from autoprune.models import build, detector_inputs, resize_rule
from autoprune.search.latency import NETWORKS, prune_to, sample_widths
from autoprune.search.latency_model import (
    correct,
    features,
    left_out_errors,
    measure_tables,
    shares_of,
    time_passes,
)
from autoprune.search.seeds import uniform
from autoprune.search.space import Space, derive_space, resolve


class Bench:
    """A dense detector, its graph and a search space without importance.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        """Builds the detector and analyses it."""
        self.runtime, self.threads, self.passes = options.runtime, options.threads, options.passes
        self.device = torch.device(options.device)
        self.clock: Callable[[], float] = time.process_time if options.cpu_time else time.perf_counter
        height, width = (int(side) for side in options.size.split("x"))
        self.size = (height, width)
        short, long = min(self.size), max(self.size)
        arguments = {"min_size": short, "max_size": long}
        self.spec = ModelSpec(name=options.model, arguments=arguments, num_classes=options.classes)
        self.model = build(self.spec).eval()
        self.graph: ChannelGraph = analyze(self.model, detector_inputs(self.size))
        scores = {name: np.ones(group.width) for name, group in self.graph.prunable.items()}
        file = derive_space(self.graph, scores, self.spec, self.size)
        self.space: Space = resolve(file, self.graph, scores)

    def networks(self, widths: Sequence[np.ndarray]) -> list[Latency]:
        """Times networks of these widths, in turns."""
        with self._runs([prune_to(self.model, self.graph, each) for each in widths]) as runs:
            return [stages[NETWORK] for stages in in_turns(runs, self.passes).values()]

    @contextmanager
    def _runs(self, models: Sequence[nn.Module]) -> Iterator[dict[str, Run]]:
        runs: dict[str, Run] = {}
        with ExitStack() as stack:
            for number, model in enumerate(models):
                images = detector_inputs(self.size)[0]
                if self.runtime == "torch":
                    images = [image.to(self.device) for image in images]
                    runs[str(number)] = in_torch(model.to(self.device), images, self.clock)
                    continue
                folder = Path(stack.enter_context(TemporaryDirectory()))
                inside = resized_size(self.size, resize_rule(model))
                runs[str(number)] = in_file(
                    model, images, inside, self.runtime, str(self.device), self.threads, folder, self.clock
                )
            yield runs


def agree(bench: Bench, options: argparse.Namespace) -> None:
    """One network twice."""
    first, second = bench.networks([bench.space.dense] * 2)
    print(f"{first} and {second}: {abs(first.median_ms / second.median_ms - 1):.1%} apart")


def predict(bench: Bench, options: argparse.Namespace) -> None:
    """The latency model against policies that it never saw, and a straight line over GFLOPs beside it."""
    calls = find_calls(bench.model, detector_inputs(bench.size)[0])
    start = time.perf_counter()
    timed = partial(time_passes, clock=bench.clock)
    with TemporaryDirectory() as folder:
        tables = measure_tables(calls, bench.runtime, bench.device, bench.threads, Path(folder), timed)
    took = time.perf_counter() - start
    widths = sample_widths(bench.space, NETWORKS) + sample_widths(bench.space, options.policies + 2, 1)[2:]
    measured = np.array([found.median_ms for found in bench.networks(widths)])
    found = features(bench.graph, shares_of(bench.graph, calls), tables, np.stack(widths))
    gflops = np.asarray(bench.space.cost("gflops", np.stack(widths)))
    line = np.column_stack([np.zeros(len(widths)), gflops, np.ones(len(widths))])
    print(f"operators timed in {took:.0f} s; dense {measured[0]:.1f} ms; {options.policies} policies")
    for name, inputs in (("latency model", found), ("line over GFLOPs", line)):
        fitted = correct(inputs[:NETWORKS], measured[:NETWORKS])
        said = inputs[NETWORKS:] @ np.array(fitted)
        off = np.abs(said / measured[NETWORKS:] - 1)
        rank = np.corrcoef(_ranks(said), _ranks(measured[NETWORKS:]))[0, 1]
        loo = np.abs(left_out_errors(inputs[:NETWORKS], measured[:NETWORKS])).mean()
        print(
            f"{name:<17} mean error {off.mean():.1%}, most {off.max():.1%}, rank correlation {rank:.3f}"
            f" (left out in turn: {loo:.1%})"
        )


def buy(bench: Bench, options: argparse.Namespace) -> None:
    """What uniform pruning to a share of the GFLOPs does to the time."""
    dense = float(bench.space.cost("gflops", bench.space.dense))
    shares = (0.5, 0.33)
    widths = [uniform(bench.space, [Budget("gflops", share * dense)]).widths for share in shares]
    times = bench.networks([bench.space.dense, *widths])
    for share, found in zip((1.0, *shares), times, strict=True):
        speed = times[0].median_ms / found.median_ms
        print(
            f"{share:.0%} of the GFLOPs: {found}, {speed:.2f} times as fast, "
            f"{speed * share:.0%} of what the GFLOPs promise"
        )


def _ranks(values: np.ndarray) -> np.ndarray:
    return np.argsort(np.argsort(values))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["agree", "predict", "buy"])
    parser.add_argument("--model", default="retinanet_resnet18_fpn")
    parser.add_argument("--classes", type=int, default=4)
    parser.add_argument("--size", default="192x256")
    parser.add_argument("--runtime", default="torch", choices=["torch", "onnxruntime", "openvino"])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--passes", type=int, default=15)
    parser.add_argument("--policies", type=int, default=30)
    parser.add_argument("--cpu-time", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    bench = Bench(options)
    print(label(options.runtime, bench.device, options.threads, 1, bench.size), end="\n\n", flush=True)
    with progress.show(Console(stderr=True)):
        {"agree": agree, "predict": predict, "buy": buy}[options.what](bench, options)


if __name__ == "__main__":
    main()
