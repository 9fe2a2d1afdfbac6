"""RetinaNet-R50 on one GPU: training, evaluation, latency and harness against what the device itself allows.

    python scripts/bench/gpu.py --out runs/bench-gpu

It needs no download: images of shapes are generated at 800 x 800, and weights are random, on which no time
here depends but that of postprocessing. On a machine with torch and torchvision alone, install these wheels
first: numpy, pillow, safetensors, pyyaml, rich, typer, pydantic (with pydantic-core, annotated-types,
typing-inspection, typing-extensions), optuna (with sqlalchemy, alembic, colorlog, tqdm, packaging),
pycocotools, hotcoco. Not ray. Meant for eight minutes at most on one H100 with 16 cores, where it has not run
yet; each part writes a JSON file, and is not measured twice.

- `train`: images/s of autoprune's training (with the dense detector as teacher, and without) and of a bare
  loop of forward, backward and AdamW on batches that are on the device already; busy: the fraction of the
  time in which kernels ran, by torch's profiler (on a CPU: processor seconds over seconds and threads).
- `evaluate`: images/s of autoprune's evaluation, COCOeval included, in float32 and in bfloat16, and of a
  bare loop of the detector; busy as above.
- `latency`: of the network at batch 1 and 16 in float16, uniformly pruned, and with whole blocks emptied
  before the rest is pruned uniformly.
- `harness`: seconds that a trial costs outside of pruning, training and evaluation, and their fraction.
"""

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from parts import Result, guard, once
from rich.console import Console
from rich.table import Table
from torch import nn

from autoprune.config import ModelSpec, make_config
from autoprune.cost.budget import Budget
from autoprune.data.evaluate import evaluate
from autoprune.data.shapes import make_shapes
from autoprune.detectors import build, detector_inputs, save_state
from autoprune.graph import prune
from autoprune.importance import Importance
from autoprune.latency.runners import NETWORK, in_torch
from autoprune.latency.timing import interleaved
from autoprune.modules.losses import losses_of
from autoprune.run.directory import RunDirectory
from autoprune.search.dry_run import Rehearsed, rehearse
from autoprune.search.make_plan import make_plan
from autoprune.search.part_times import time_trials
from autoprune.search.pipeline import derived_space
from autoprune.space.one_shot import uniform, widths_of
from autoprune.space.resolve import resolve
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.task.scoring import score_channels
from autoprune.task.training_start import make_teacher
from autoprune.training import TrainSettings, train

FRACTIONS = (1.0, 0.67, 0.5, 0.33)
MODEL = "retinanet_resnet50_fpn"
Works = Mapping[str, Callable[[], None]]


class Bench:
    """Detector, data and a search space on weights' norms, made once."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, side = options, options.size
        folder: Path = options.out
        data = make_shapes(folder / "data", 0, train=options.images, val=options.images, size=side)
        arguments = {"min_size": side, "max_size": side}
        weights = folder / "dense.safetensors"
        if not weights.exists():
            torch.manual_seed(0)
            save_state(build(ModelSpec(name=options.model, arguments=arguments, num_classes=6)), weights)
        self.config = make_config(
            model=options.model,
            model_arguments=arguments,
            weights=str(weights),
            data=data,
            out=folder / "run",
            device=options.device,
            criterion="l2",
            curves=False,
            budget_gflops="50%",
            batch_size=options.batch,
            trials=8,
            rungs=(0, 50),
            confirm=0,
            reconstruct_images=min(32, options.images),
        )
        self.task: PruningTask = load_task(self.config)
        self.scores: Importance = score_channels(self.task, "l2")
        file = derived_space(self.task, self.scores)
        self.space = resolve(file, self.task.graph, self.scores)

    def batches(self) -> list[Any]:
        """Images and targets of all steps, on the device."""
        size, images = self.options.batch, len(self.task.train)
        places = [[(step * size + k) % images for k in range(size)] for step in range(self.options.steps)]
        return [self.task.train.batch(each, self.task.device) for each in places]

    def keep(self, fraction: float, emptied: Sequence[str] = ()) -> Mapping[str, Sequence[int]]:
        """Kept channels at a fraction of the GFLOPs: some groups emptied, the others by the same ratio."""
        graph, gone = self.task.graph, {name: () for name in emptied}
        if fraction == 1:
            return gone
        lowest, ratio = 1.0, 0.0
        for step in range(1, 100):  # the least uniform ratio that meets it beside what is emptied
            ratio = step / 100
            keep = {**self._uniform(ratio), **gone}
            lowest = graph.gflops({name: len(kept) for name, kept in keep.items()}) / graph.gflops()
            if lowest <= fraction:
                return keep
        raise SystemExit(
            f"no uniform ratio reaches {fraction:.0%} of the GFLOPs ({lowest:.0%} at {ratio:.0%})"
        )

    def _uniform(self, ratio: float) -> dict[str, Sequence[int]]:
        space = self.space
        return dict(space.keep(space.widths(torch.full((len(space.variables),), ratio).double().numpy())))

    def emptied(self, fraction: float) -> list[str]:
        """Groups to empty, those first that save most, until two thirds of what must go is gone."""
        graph, chosen = self.task.graph, list[str]()
        able = [name for name, group in graph.groups.items() if group.can_empty]
        able.sort(key=lambda name: graph.gflops({name: 0}))
        for name in able:
            if 1 - graph.gflops(dict.fromkeys([*chosen, name], 0)) / graph.gflops() <= (1 - fraction) * 2 / 3:
                chosen.append(name)
        return chosen


def timed(bench: Bench, work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds of some work, and the fraction of them in which the device was busy; runs it twice."""
    device = bench.task.device
    _wait(device)
    started, processor = time.perf_counter(), time.process_time()
    work()
    _wait(device)
    seconds, processor = time.perf_counter() - started, time.process_time() - processor
    if device.type != "cuda":
        return seconds, processor / seconds / torch.get_num_threads()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        work()
        _wait(device)
    kernels = sum(event.self_device_time_total for event in profile.key_averages()) / 1e6
    return seconds, kernels / seconds


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def measure_training(bench: Bench) -> Result:
    """A bare loop, autoprune's loop on the same number of images, and the same with a teacher."""
    task, options = bench.task, bench.options
    batches, images = bench.batches(), options.steps * options.batch
    amp = torch.autocast(task.device.type, torch.bfloat16, enabled=task.device.type == "cuda")

    def bare() -> None:
        model = build(task.spec).to(task.device).to(memory_format=torch.channels_last).train()
        weights = [weight for weight in model.parameters() if weight.requires_grad]
        optimizer = torch.optim.AdamW(weights, lr=1e-6, fused=True)
        for pictures, targets in batches:
            optimizer.zero_grad()
            with amp:
                losses = losses_of(model, pictures, targets)
            torch.autograd.backward(torch.stack(list(losses.values())).sum())
            optimizer.step()

    def ours(distilled: bool) -> None:
        settings = TrainSettings(options.steps, batch_size=options.batch, learning_rate=1e-6)
        teacher = make_teacher(task, {}, bench.scores) if distilled else None
        train(task.model, task.train, settings, task.device, teacher)

    ours(distilled=False)  # decodes the images, and warms up
    works: Works = {
        "bare": bare,
        "autoprune": partial(ours, False),
        "autoprune, teacher": partial(ours, True),
    }
    return _rates(bench, works, images)


def measure_evaluation(bench: Bench) -> Result:
    """A bare loop of the detector, and autoprune's evaluation in both precisions."""
    task, batch = bench.task, bench.options.batch
    model = task.model.to(memory_format=torch.channels_last)
    starts = range(0, len(task.val), batch)
    places = [range(start, min(start + batch, len(task.val))) for start in starts]
    pictures = [task.val.batch(each, task.device)[0] for each in places]

    def bare() -> None:
        with torch.inference_mode():
            for each in pictures:
                model(each)

    def ours(amp: bool) -> None:
        evaluate(task.model, task.val, task.device, batch, amp=amp)

    bare()
    works: Works = {
        "bare": bare,
        "autoprune": partial(ours, False),
        "autoprune, bfloat16": partial(ours, True),
    }
    return _rates(bench, works, len(task.val))


def _rates(bench: Bench, works: Works, images: int) -> Result:
    rows: Result = {}
    for name, work in works.items():
        seconds, busy = timed(bench, work)
        rows[name] = {"images_per_s": images / seconds, "busy": busy}
    for row in rows.values():
        row["of_bare"] = row["images_per_s"] / rows["bare"]["images_per_s"]
    return rows


def measure_latency(bench: Bench, batch: int, empty: bool) -> Result:
    """The network at each fraction of the GFLOPs, interleaved."""
    task = bench.task
    half = torch.float16 if task.device.type == "cuda" else torch.bfloat16
    runs, rows = {}, dict[str, Any]()
    with torch.autocast(task.device.type, half):
        for fraction in FRACTIONS:
            keep = bench.keep(fraction, bench.emptied(fraction) if empty else ())
            model: nn.Module = prune(task.model, task.graph, keep).to(memory_format=torch.channels_last)
            image = detector_inputs(task.input_size, task.device)[0][0]
            runs[f"{fraction:.0%}"] = in_torch(model, [image] * batch)
            widths = {name: len(kept) for name, kept in keep.items()}
            rows[f"{fraction:.0%}"] = {
                "gflops": task.graph.gflops(widths) / task.graph.gflops(),
                "emptied": sum(not kept for kept in keep.values()),
            }
        for name, stages in interleaved(runs, bench.options.passes).items():
            rows[name]["ms"] = stages[NETWORK].median_ms
    return rows


def measure_harness(bench: Bench) -> Result:
    """A rehearsed search for the harness, and timed parts for what a trial of 500 images does."""
    task, space = bench.task, bench.space
    with TemporaryDirectory() as folder:
        scratch = RunDirectory(Path(folder))
        plan, _ = make_plan(task, derived_space(task, bench.scores), {"l2": bench.scores}, scratch)
        evaluator = Rehearsed(task, plan.space, bench.scores, dense_map=0.5, plan=plan)
        _, records, seconds = rehearse(task, evaluator, plan, scratch, task.config.trials, False)
    start = uniform(space, [Budget("gflops", 0.5 * task.graph.gflops())])
    keep = space.keep(widths_of(space, start))
    costs, _ = time_trials(task, evaluator, [(0.5 * task.graph.gflops(), keep)])
    rungs = task.config.rungs
    parts = [costs.of_rung(0.5 * task.graph.gflops(), rungs, rung, 500) for rung in range(len(rungs))]
    trial_s = sum(sum(each.values()) for each in parts)
    harness_s = seconds / len(records)
    return {"harness_s": harness_s, "trial_s": trial_s, "fraction": harness_s / (harness_s + trial_s)}


def main() -> None:
    """Measures what is not measured yet, and prints one table."""
    options = arguments()
    guard(options.out / "settings.json", {k: str(v) for k, v in vars(options).items() if k != "out"})
    bench = Bench(options)
    device = bench.task.device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    table = Table("measured", "result", "against", title=f"{options.model} at {options.size} px on {name}")
    for part, work in (("train", measure_training), ("evaluate", measure_evaluation)):
        for row, figures in once(options.out / f"{part}.json", partial(work, bench)).items():
            table.add_row(
                f"{part}: {row}",
                f"{figures['images_per_s']:.1f} images/s",
                f"{figures['of_bare']:.0%} of bare, device busy {figures['busy']:.0%}",
            )
    for batch in options.batches:
        for empty in (False, True):
            kind = "emptied" if empty else "uniform"
            file = options.out / f"latency-{batch}-{kind}.json"
            rows = once(file, partial(measure_latency, bench, batch, empty))
            for figures in rows.values():
                table.add_row(
                    f"latency, batch {batch}, {kind}: {figures['gflops']:.0%} of the GFLOPs, "
                    f"{figures['emptied']} groups emptied",
                    f"{figures['ms']:.2f} ms",
                    f"{rows['100%']['ms'] / figures['ms']:.2f} times as fast as dense",
                )
    harness = once(options.out / "harness.json", partial(measure_harness, bench))
    table.add_row(
        "harness",
        f"{harness['harness_s']:.3f} s a trial",
        f"{harness['fraction']:.2%} of {harness['trial_s']:.1f} s",
    )
    Console(width=150).print(table)


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def numbers(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--out", type=Path, default=Path("runs/bench-gpu"))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", type=int, default=800)
    parser.add_argument("--images", type=int, default=96, help="of each split")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--passes", type=int, default=15)
    parser.add_argument("--batches", type=numbers, default=[1, 16], help="of `latency`")
    return parser.parse_args()


if __name__ == "__main__":
    main()
