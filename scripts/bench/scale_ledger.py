"""The ledger with thousands of trials: time of a suggestion, memory, disk, and time to resume."""

import argparse
import gc
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from torchvision.models.detection import retinanet_resnet50_fpn

from autoprune.config import ModelSpec
from autoprune.cost.budget import Budget
from autoprune.detectors import detector_inputs
from autoprune.graph import analyze
from autoprune.search.plan import SpacePlan
from autoprune.space.derive import derive_space
from autoprune.space.resolve import resolve
from autoprune.study.ledger import Ledger
from autoprune.study.trials import LedgerSettings

MEASURED = 100  # suggestions at the end that are timed, for each sampler
SIZE = (256, 256)


def ledger(arguments: argparse.Namespace) -> dict[str, Any]:
    """Fills a study with random trials, then times the last suggestions of samplers, and a resumed run."""
    trials = arguments.trials or 5000
    plan = make_plan()
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        journal = Path(folder) / "study.journal"
        gc.collect()
        base = _resident_mb()
        random_trials = max(trials - MEASURED, 0)
        filled = _open(journal, plan, random_trials, "random")
        started = time.perf_counter()
        run(filled)
        print(f"filled with {random_trials} random trials in {time.perf_counter() - started:.0f} s")
        figures["driver_growth_mb"] = round(_resident_mb() - base, 1)
        copy = journal.read_bytes()
        for sampler in ("thompson", "tpe", "nsga2"):
            journal.write_bytes(copy)
            started = time.perf_counter()
            resumed = _open(journal, plan, trials, sampler)
            resume = time.perf_counter() - started
            suggestions, reported = run(resumed)
            figures[sampler] = {
                "trials": len(resumed.finished()),
                "suggestion_p50_s": round(float(np.quantile([wall for wall, _ in suggestions], 0.5)), 3),
                "suggestion_p95_s": round(float(np.quantile([wall for wall, _ in suggestions], 0.95)), 3),
                "suggestion_cpu_p95_s": round(float(np.quantile([cpu for _, cpu in suggestions], 0.95)), 3),
                "report_p95_s": round(float(np.quantile(reported, 0.95)), 3),
                "resume_s": round(resume, 2),
                "journal_mb": round(journal.stat().st_size / 1e6, 1),
            }
            print(sampler, figures[sampler], flush=True)
    print(f"{len(plan.variables)} parameters; the driver grew by {figures['driver_growth_mb']} MB")
    return {"parameters": len(plan.variables), **figures}


def make_plan() -> SpacePlan:
    """RetinaNet-R50's own search space at half its GFLOPs, with scores drawn at random."""
    model = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=91).eval()
    graph = analyze(model, detector_inputs(SIZE))
    random = np.random.default_rng(0)
    scores = {name: random.exponential(1.0, group.width) for name, group in graph.prunable.items()}
    spec = ModelSpec(name="retinanet_resnet50_fpn", num_classes=91)
    space = resolve(derive_space(graph, scores, spec, SIZE, "l2"), graph, scores)
    return SpacePlan(space, [(Budget("gflops", 0.5 * graph.gflops()),)], {}, {"bench": "scale"}, "l2")


def run(ledger: Ledger) -> tuple[list[tuple[float, float]], list[float]]:
    """Runs a ledger to its end with a formula for mAP.

    Returns:
        Seconds of each ask, on the wall and of the CPU, and wall seconds of each report.
    """
    random = np.random.default_rng(1)
    suggestions: list[tuple[float, float]] = []
    reported: list[float] = []
    ledger.note("dense", {"map": 0.45})
    while True:
        started, cpu = time.perf_counter(), time.process_time()
        if (candidate := ledger.ask()) is None:
            return suggestions, reported
        suggestions.append((time.perf_counter() - started, time.process_time() - cpu))
        gone = float(ledger.plan.removed([candidate.widths]).sum())
        score = 0.45 - gone / 1e5 + 0.01 * random.normal()
        for rung in range(ledger.settings.rungs):
            metrics = {"map": score, "map50": score, "loss": 1 - score, "gflops": 20.0, "mparams": 10.0}
            metrics |= {"training_s": 60.0, "evaluation_s": 20.0, "other_s": 0.2}
            started = time.perf_counter()
            is_promoted = ledger.report(candidate.number, rung, metrics)
            reported.append(time.perf_counter() - started)
            if not is_promoted:
                break


def _open(journal: Path, plan: SpacePlan, trials: int, sampler: str) -> Ledger:
    settings = LedgerSettings(
        trials=trials,
        objectives=("map", "gflops"),
        rungs=2,
        rung_keep=0.5,
        sampler=sampler,
        seed=0,
        confirm=0,
        parallel=True,
        racing=False,
    )
    return Ledger(journal, "s", plan, settings)


def _resident_mb() -> float:
    """Memory of this process now, in megabytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1e6
