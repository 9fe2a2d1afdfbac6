"""`autoprune demo`: the whole way on generated data, without network and in a few minutes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.front import PICTURE
from autoprune.cli.terminal import tell, working
from autoprune.config import Config, make_config
from autoprune.data import demo_detector
from autoprune.errors import AutopruneError
from autoprune.progress import say
from autoprune.report.entries import budgets_of, entries
from autoprune.report.tables import Entry, Kind, comparison

if TYPE_CHECKING:
    from torch import nn

    from autoprune.recovery.recover import Recovered
    from autoprune.run.results import SearchResult

TRAIN_IMAGES = 1200
"""For importance and recovery; the shipped weights were trained on these and more."""
TEST_IMAGES = 256
"""Neither training nor search sees them; the last table is measured on them."""
BUDGET = "50%"
SETTINGS: dict[str, Any] = {
    "trials": 10,
    "rungs": (0,),
    "confirm": 0,
    "importance_images": 64,
    "recalibration_images": 64,
    "steps": 270,
    "batch_size": 8,
    "learning_rate": 5e-4,
    "precision": "bfloat16",
}
STEPS = 5


def demo(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="Run directory; a demo that was stopped goes on there."),
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the search and of recovery.")] = 0,
    budget_gflops: Annotated[
        str,
        typer.Option(
            "--budget-gflops", metavar="TEXT", help="GFLOPs, or a fraction of the dense detector's."
        ),
    ] = BUDGET,
    train: Annotated[
        bool, typer.Option("--train", help="Train the dense detector as well: about an hour on two cores.")
    ] = False,
    threads: Annotated[
        int | None, typer.Option("--threads", min=1, help="CPU threads; default: torch's own choice.")
    ] = None,
) -> None:
    """Prune a small RetinaNet to half its GFLOPs: no data, no network, a few minutes."""
    started = time.monotonic()
    with working() as console:
        with _step(1, "Data", "draws images of shapes in COCO format: real JPEG and JSON files"):
            data = _make_data(out, train)
        with _step(2, "Dense detector", "a RetinaNet on ResNet-18, trained on such images"):
            weights = _train(out, data) if train else demo_detector.WEIGHTS
        config = _config(out, data, weights, seed, budget_gflops, threads)
        with _step(3, "Search", _SEARCH.format(trials=config.trials, budget=budget_gflops)):
            result = _search(config)
        with _step(4, "Recovery", _RECOVERY.format(steps=config.steps)):
            best, uniform = _recover(result)
        with _step(5, "Export and comparison", "the detector as files, read back and measured on new images"):
            exported = _export(best, out / "detector")
            rows = _compare(config, exported, uniform.folder)
        picture = _draw(result, out)
        console.print(comparison(rows, title=f"{TEST_IMAGES} test images that training and search never saw"))
        for what, path in {
            "detector": f"{exported}/model.safetensors",
            "its policy": f"{exported}/policy.yaml",
            "search space": f"{out}/space.yaml",
            "front": picture,
            "report": _report(out),
        }.items():
            tell(console, f"{what:<13} {path}")
        console.print(f"\n{time.monotonic() - started:.0f} s in all. Your own detector is next:")
        tell(console, "autoprune search --data DIR --weights FILE --budget-gflops 50%")


_SEARCH = (
    "scores every channel by what the loss would lose with it, then tries {trials} ways to spend {budget} "
    "of the GFLOPs on the layers; each is pruned, solved anew for what it lost, and scored"
)
_RECOVERY = (
    "trains the best policy for {steps} steps, the dense detector as its teacher; and, to compare, uniform "
    "pruning just as long"
)


@contextmanager
def _step(number: int, what: str, why: str) -> Iterator[None]:
    """Says what comes, why, and how long it took."""
    say(f"\n[bold]{number}/{STEPS} {what}[/]: {why}", markup=True)
    started = time.monotonic()
    yield
    say(f"[dim]{time.monotonic() - started:.0f} s[/]", markup=True)


def _make_data(out: Path, train: bool) -> Path:
    """The first images of the set that the shipped weights were trained on, or all of them."""
    from autoprune.data.shapes import make_shapes

    return make_shapes(
        out / "data",
        demo_detector.DATA_SEED,
        train=demo_detector.TRAIN_IMAGES if train else TRAIN_IMAGES,
        val=demo_detector.VAL_IMAGES,
        test=TEST_IMAGES,
        size=demo_detector.IMAGE_SIZE,
    )


def _config(
    out: Path, data: Path, weights: Path, seed: int, budget_gflops: str, threads: int | None
) -> Config:
    model = demo_detector.MODEL
    return make_config(
        model=model.name,
        model_arguments=model.arguments,
        weights=str(weights),
        data=data,
        out=out,
        seed=seed,
        budget_gflops=budget_gflops,
        threads=threads,
        **SETTINGS,
    )


def _search(config: Config) -> "SearchResult":
    from autoprune.search.pipeline import search

    return search(config)


def _recover(result: "SearchResult") -> "tuple[Recovered, Recovered]":
    """The best policy on the front and the uniform one, trained back alike."""
    from autoprune.recovery.recover import recover

    uniform = next(record.number for record in result.records if record.origin == "uniform")
    if result.best is None:
        raise AutopruneError(f"no trial of {result.run} came through; see `autoprune front {result.run}`")
    say(f"best: trial {result.best.trial} ({result.best.origin}); uniform: trial {uniform}")
    found = {item.metrics["trial"]: item for item in recover(result.run, [result.best.trial, uniform])}
    return found[result.best.trial], found[uniform]


def _export(recovered: "Recovered", folder: Path) -> Path:
    """Writes the detector to ``folder`` and makes sure that it reads back the same."""
    from autoprune.export import largest_difference, load, save_detector

    model = load(recovered.folder)
    save_detector(folder, model, recovered.policy)
    if largest_difference(model, load(folder), recovered.policy.input_size) != 0:
        raise AutopruneError(f"{folder} gives other outputs than {recovered.folder}")
    say("read back: its outputs are identical")
    return folder


def _compare(config: Config, exported: Path, uniform: Path) -> list[Entry]:
    """Measures the dense, the uniformly pruned and the searched detector on the test images, side by side."""
    from autoprune.data.coco import open_data
    from autoprune.data.evaluate import evaluate
    from autoprune.detectors import detector_inputs, load_dense, resize_rule
    from autoprune.export import load
    from autoprune.graph import analyze
    from autoprune.latency.timing import measure
    from autoprune.task.pruning_task import pick_device

    kinds: tuple[Kind, ...] = ("dense", "uniform", "searched")
    device = pick_device(config)
    dense, _ = load_dense(config.model, config.model_arguments, weights=config.weights)
    models: dict[str, nn.Module] = dict(zip(kinds, (dense, load(uniform), load(exported)), strict=True))
    assert isinstance(config.data, Path)
    images = open_data(config.data, "test", resize_rule(dense))
    size = images.most_common_size
    graphs = {kind: analyze(model, detector_inputs(size)) for kind, model in models.items()}
    models = {kind: model.to(device) for kind, model in models.items()}
    times = measure(models, detector_inputs(size, device), device=device)
    return [
        Entry(
            name=kind,
            kind=kind,
            map=evaluate(models[kind], images, device).map,
            gflops=graphs[kind].gflops(),
            mparams=graphs[kind].mparams(),
            latency_ms=times[kind].median_ms,
            spread_ms=(times[kind].p10_ms, times[kind].p90_ms),
        )
        for kind in kinds
    ]


def _draw(result: "SearchResult", out: Path) -> Path:
    from autoprune.report.plots import plot_front

    trials, dense = entries(result)
    assert dense is not None  # a search measures it first
    plot_front(
        out / PICTURE, trials, dense, budgets_of(result), f"autoprune demo: {len(trials)} complete trials"
    )
    return out / PICTURE


def _report(out: Path) -> Path:
    from autoprune.cli.report import PAGE
    from autoprune.report.html import write_page
    from autoprune.report.run_summary import read_run_summary

    write_page(read_run_summary(out), out / PAGE)
    return out / PAGE


def _train(out: Path, data: Path) -> Path:
    """Trains the dense detector from nothing, as `scripts/train_demo_detector.py` does."""
    import torch

    from autoprune.data.coco import open_data
    from autoprune.detectors import build, resize_rule, save_state
    from autoprune.training import TrainSettings
    from autoprune.training import train as fit

    weights = out / "dense.safetensors"
    if weights.exists():
        return weights
    model = build(demo_detector.MODEL)
    images = open_data(data, "train", resize_rule(model))
    settings = TrainSettings(**demo_detector.TRAINING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = out / "dense_checkpoint.safetensors"
    trained = fit(model, images, settings, device, checkpoint=checkpoint, what="training").model
    save_state(trained, weights, dtype=torch.float16)
    checkpoint.unlink(missing_ok=True)
    return weights
