r"""What a training step costs beside the bare one, and what waits for images: before and after in one run.

    python scripts/bench/training.py --out runs/bench-training
    python scripts/bench/training.py --before PATH_OF_ANOTHER_CHECKOUT --rounds 3 --out runs/bench-training

The demo's detector and generated images, unless --data and others name some. Figures are medians over the
rounds, in each of which all versions run one after the other. Rows:

- `step / bare`: CPU seconds of a step of `train` without a teacher, by those of forward, backward and AdamW
  on the same batches in plain torch; the two alternate in one process.
- `slow decode / none`: seconds of a step, and of a batch of an evaluation, where each image takes --decode-ms
  to decode at each use, by those where all are in memory. Decoding, in --cores threads, and the detector,
  --step-ms per batch, are sleeps: idle cores beside a GPU, and no figure of how busy the machine is.
- `waits`: how often a step waits for the device, those within the detector aside.
- `loader`: images decoded and resized a second, by --cores threads and by as many processes.
"""

import argparse
import copy
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import torch
from learning_rates import config_of
from parts import add_demo_or_data, changed
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.overrides import TorchFunctionMode

from autoprune.data.detections import detect
from autoprune.images.decode import decode, threads
from autoprune.seeding import seed as derive
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.training import TrainSettings, train
from autoprune.training.batches import draw_batch

CPU = torch.device("cpu")
RATE = 1e-4
PARTS = ("step", "decode", "waits", "loader")
WAITS = ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__")


def main() -> None:
    """Measures this version, or all of them in a process each, and prints the table."""
    given = arguments()
    if given.one:
        print(json.dumps(measure(given)))
        return
    versions = {"now": Path(__file__).parents[2]} | ({"before": given.before} if given.before else {})
    results: dict[str, list[dict[str, float]]] = {name: [] for name in versions}
    for _ in range(given.rounds):
        for name, checkout in versions.items():
            results[name].append(measure_in(checkout, Path(__file__)))
    table = Table(*("", *versions), title=f"medians of {given.rounds} rounds")
    for row in results["now"][0]:
        table.add_row(row, *(f"{median(each[row] for each in results[name]):.3f}" for name in versions))
    Console().print(table)


def measure_in(checkout: Path, script: Path) -> dict[str, float]:
    """One round of a script's figures, by the version in a checkout."""
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    command = [sys.executable, str(script), *sys.argv[1:], "--one"]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    result: dict[str, float] = json.loads(output.splitlines()[-1])
    return result


def measure(given: argparse.Namespace) -> dict[str, float]:
    """All figures of the version that is imported."""
    torch.set_num_threads(given.threads)
    task = load_task(config_of(given))
    parts = dict(zip(PARTS, (step_costs, slow_decoding, waits, loader), strict=True))
    return {row: value for name in given.parts.split(",") for row, value in parts[name](task, given).items()}


def step_costs(task: PruningTask, given: argparse.Namespace) -> dict[str, float]:
    """A step of `train` by the bare one that follows it, in CPU and in wall time; medians over the steps."""
    settings = TrainSettings(given.steps + 2, given.batch_size, RATE)
    step = bare_step(task, settings)
    spent: dict[str, list[float]] = {"bare": [], "bare wall": [], "all": [], "wall": []}
    clock = [time.process_time(), time.perf_counter()]

    def after(_: Any) -> None:
        ours = time.perf_counter() - clock[1]
        start = time.thread_time(), time.perf_counter()
        step(len(spent["all"]))
        spent["bare"].append(time.thread_time() - start[0])
        spent["bare wall"].append(time.perf_counter() - start[1])
        spent["all"].append(time.process_time() - clock[0])
        spent["wall"].append(ours)
        clock[:] = time.process_time(), time.perf_counter()

    train(task.model, task.train, settings, CPU, after_step=after)
    bare, bare_wall, every, wall = (values[2:] for values in spent.values())  # the first steps decode
    return {
        "step / bare, CPU": median((both - one) / one for both, one in zip(every, bare, strict=True)),
        "step / bare, wall": median(ours / one for ours, one in zip(wall, bare_wall, strict=True)),
        "bare step, CPU s": median(bare),
    }


def bare_step(task: PruningTask, settings: TrainSettings) -> Callable[[int], None]:
    """Forward, backward and AdamW in plain torch, on the batches of `train`, which are made before."""
    model = copy.deepcopy(task.model).to(memory_format=torch.channels_last).train()
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    matrices, vectors = [w for w in weights if w.ndim > 1], [w for w in weights if w.ndim <= 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": settings.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
    batches = [
        task.train.batch(
            (draw := draw_batch(len(task.train), settings.batch_size, k, settings.seed)).indices,
            CPU,
            draw.flips,
        )
        for k in range(settings.steps)
    ]

    def step(number: int) -> None:
        state = torch.random.get_rng_state()
        torch.manual_seed(derive(settings.seed, "step", number))
        optimizer.zero_grad()
        images, targets = batches[number]
        total: Any = sum(model(images, targets).values())
        total.backward()
        optimizer.step()
        torch.random.set_rng_state(state)

    return step


@contextmanager
def decoding(cores: int, milliseconds: float) -> Iterator[None]:
    """Makes each image take so long to decode, on cores that have nothing else to do."""
    users = [module for name, module in list(sys.modules.items()) if name.startswith("autoprune.")]
    data: Any = sys.modules["autoprune.data.coco"]
    before = [(module, "threads", threads) for module in users if getattr(module, "threads", 0) is threads]
    before.append((data, "decode", decode))

    def slow(*args: Any) -> Any:
        time.sleep(milliseconds / 1e3)
        return decode(*args)

    for module, name, _ in before:
        setattr(module, name, slow if name == "decode" else lambda: cores)
    try:
        yield
    finally:
        for module, name, value in before:
            setattr(module, name, value)


class Sleeper(nn.Module):
    """Takes a fixed time for each batch and leaves the processor idle, as a detector on a GPU."""

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self.weight, self.seconds = nn.Parameter(torch.ones(())), seconds

    def forward(self, images: Any, targets: Any = None) -> Any:
        """A loss, or no detections."""
        time.sleep(self.seconds)
        if self.training:
            return {"loss": self.weight * 1.0}
        return [
            {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0)} for _ in images
        ]


def walls(task: PruningTask, given: argparse.Namespace) -> tuple[float, float]:
    """Seconds of a step, the first two aside, and of a batch of an evaluation, where all is a sleep."""
    model, ends = Sleeper(given.step_ms / 1e3), list[float]()
    settings = TrainSettings(given.steps + 2, given.batch_size, RATE)
    train(model, task.train, settings, CPU, after_step=lambda _: ends.append(time.perf_counter()))
    chosen = range(min(given.steps * given.batch_size, len(task.train)))
    start = time.perf_counter()
    detect(model, task.train, chosen, CPU, given.batch_size)
    batches = math.ceil(len(chosen) / given.batch_size)
    return (ends[-1] - ends[1]) / (len(ends) - 2), (time.perf_counter() - start) / batches


def slow_decoding(task: PruningTask, given: argparse.Namespace) -> dict[str, float]:
    """Steps and evaluations where images take long to decode, by those where all are in memory."""
    task.train.batch(range(len(task.train)))
    fast = walls(task, given)
    with decoding(given.cores, given.decode_ms):
        slow = walls(load_task(changed(task.config, image_cache_gib=0)), given)
    names = ("step, slow decode / none", "evaluation, slow decode / none")
    return {name: late / soon for name, late, soon in zip(names, slow, fast, strict=True)}


class Waits(TorchFunctionMode):
    """Counts the calls that wait for the device, those within a detector aside."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.count, self.inside = 0, 0
        model.register_forward_pre_hook(lambda *_: setattr(self, "inside", self.inside + 1))
        model.register_forward_hook(lambda *_: setattr(self, "inside", self.inside - 1))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Counts and calls."""
        if not self.inside and getattr(func, "__name__", "") in WAITS:
            self.count += 1
        return func(*args, **(kwargs or {}))


def waits(task: PruningTask, given: argparse.Namespace) -> dict[str, float]:
    """Waits of a step: what a training of three steps has more than one of two."""
    counts = []
    for steps in (2, 3):
        model = copy.deepcopy(task.model)
        with Waits(model) as mode:
            train(model, task.train, TrainSettings(steps, given.batch_size, RATE), CPU)
        counts.append(mode.count)
    return {"waits": float(counts[1] - counts[0])}


def loader(task: PruningTask, given: argparse.Namespace) -> dict[str, float]:
    """Images a second, decoded and resized."""
    split = task.train
    work = [(split.files[k], split.sizes[k]) for k in range(min(len(split), 200))]
    start = time.process_time()
    for each in work:
        decode(*each)
    rows = {"loader: images per CPU s": len(work) / (time.process_time() - start)}
    pools: dict[str, Callable[[int], Executor]] = {
        "threads": ThreadPoolExecutor,
        "processes": ProcessPoolExecutor,
    }
    for name, pool in pools.items():
        with pool(given.cores) as workers:
            list(workers.map(_decode, work[: given.cores]))  # they have begun
            start = time.perf_counter()
            list(workers.map(_decode, work, chunksize=8))
            rows[f"loader: images per s, {name}"] = len(work) / (time.perf_counter() - start)
    return rows


def _decode(work: tuple[Path, tuple[int, int]]) -> Any:
    return decode(*work)


def arguments(description: str | None = __doc__, with_parts: bool = True) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_demo_or_data(parser)
    parser.add_argument("--before", type=Path, help="checkout of another version")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--cores", type=int, default=4, help="that decode")
    parser.add_argument("--step-ms", type=float, default=500.0)
    parser.add_argument("--decode-ms", type=float, default=100.0)
    if with_parts:
        parser.add_argument("--parts", default=",".join(PARTS), help="rows, separated by commas")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--one", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(seed=0, distill=0.0, clip_norm=1.0)
    given = parser.parse_args()
    if with_parts and (unknown := [name for name in given.parts.split(",") if name not in PARTS]):
        parser.error(f"there is no part {unknown[0]}; choose {', '.join(PARTS)}")
    return given


if __name__ == "__main__":
    main()
