"""`autoprune demo`: a search from data to exported detector on generated images, offline, in minutes."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.terminal import show_table, tell, working
from autoprune.config import Config, make_config
from autoprune.data import demo_detector
from autoprune.errors import AutopruneError, ConfigError, RunError
from autoprune.progress import command_line, say
from autoprune.report.tables import comparison as comparison_table
from autoprune.run.names import FRONT_PICTURE, POLICY_FILE, REPORT_FILE, SPACE_FILE, WEIGHTS_FILE

if TYPE_CHECKING:
    from autoprune.cli.demo_comparison import Compared
    from autoprune.recovery.finished import Recovered
    from autoprune.report.tables import Entry
    from autoprune.run.results import SearchResult

# What the demo's time goes to; see docs/benchmarks.md for how long each part takes.
BUDGETS = "50%,33%,12%"
TRIALS = 18
"""Nine warm starts, three at each budget, and nine of the sampler."""
STEPS_AT_SIBLING = 600
"""Of the recovery of the best trial at the budget next to the smaller sibling's GFLOPs."""
STEPS = 100
"""Of those at smaller budgets; at larger ones reconstruction alone is nearly as good."""
TRAIN_IMAGES = 1200
"""For importance and recovery; the shipped weights were trained on these and more."""
TRAINED_FILE = "dense.safetensors"
"""What `--train` makes."""
VAL_IMAGES = 192
"""Trials are measured on them."""
TEST_IMAGES = 256
"""Neither training nor search sees them; the last table is measured on them."""
SETTINGS: dict[str, Any] = {
    "trials": TRIALS,
    "rungs": (0,),
    "confirm": 0,
    "curves": False,  # they would take a fifth of the time
    "importance_images": 64,
    "reconstruct_images": 24,
    "recalibration_images": 64,
    "steps": STEPS,
    "batch_size": 8,
    "precision": "bfloat16",
}
PARTS = 5


def demo(
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Run directory; the same command resumes an interrupted demo."
        ),
    ] = Path("runs/demo"),
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the search and of recovery.")] = 0,
    budget_gflops: Annotated[
        str,
        typer.Option(
            "--budget-gflops",
            metavar="TEXT",
            help="GFLOPs, or fractions of the dense detector's, separated by commas.",
        ),
    ] = BUDGETS,
    train: Annotated[
        bool,
        typer.Option(
            "--train",
            help="Train the dense detector as well: a quarter of an hour on two idle cores with AMX, half an "
            "hour without.",
        ),
    ] = False,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, max=1024, help="CPU threads; default: torch's own choice."),
    ] = None,
) -> None:
    """Prune a small RetinaNet to 50%, 33% and 12% of its GFLOPs: no data, no network, a few minutes."""
    started = time.monotonic()
    if not budget_gflops.strip(", "):
        raise ConfigError("--budget-gflops names no budget; give GFLOPs, or a percentage such as 50%")
    weights = out / TRAINED_FILE if train else demo_detector.WEIGHTS
    _refuse_other_demo(_config(out, out / "data", weights, seed, budget_gflops, threads))
    with working() as console:
        with _part(1, "Data", "draws images of shapes in COCO format: real JPEG and JSON files"):
            data = _make_data(out, train)
        with _part(2, "Dense detector", "a RetinaNet on ResNet-18, trained on such images"):
            if train:
                _train(out, data, threads)
        config = _config(out, data, weights, seed, budget_gflops, threads)
        budgets = ", ".join(config.budget_gflops)
        with _part(3, "Search", _SEARCH.format(trials=config.trials, budgets=budgets)):
            result = _search(config)
        with _part(4, "Recovery", _RECOVERY.format(long=STEPS_AT_SIBLING, short=config.steps)):
            compared, steps, recovered = _recover(result)
        with _part(5, "Export and comparison", _COMPARISON.format(images=TEST_IMAGES)):
            exported = _export(recovered[-1], out / "detector")
            rows, sibling, lines = _compare(config, compared, steps, recovered)
        picture = _draw(result, sibling, out)
        title = f"{TEST_IMAGES} test images that training and search never saw"
        show_table(console, comparison_table(rows, title))
        console.print(_LEGEND.format(long=STEPS_AT_SIBLING, short=config.steps))
        console.print()
        for line in lines:
            console.print(line)
        console.print()
        files = {
            "detector": exported / WEIGHTS_FILE,
            "its policy": exported / POLICY_FILE,
            "search space": out / SPACE_FILE,
            "front": picture,
            "report": _report(out, [f"On {title}: {line}" for line in lines]),
        }
        for name, path in files.items():
            tell(console, f"{name:<13} {path}")
        console.print()
        console.print(f"{time.monotonic() - started:.0f} s in all. Your own detector is next:")
        tell(console, "autoprune search --model NAME --weights FILE --data DIR --budget-gflops 50%")


_SEARCH = (
    "scores the importance of every channel for the loss, then tries {trials} ways to spend {budgets} of the "
    "GFLOPs on the layers: each policy is pruned, reconstructed by least squares, and measured"
)
_RECOVERY = (
    "trains the best policy at the smaller sibling's GFLOPs for {long} steps and those below it for {short}, "
    "with the dense detector as teacher"
)
_COMPARISON = (
    "the smallest detector as files; then {images} new images, with the smaller sibling, the same RetinaNet "
    "with fewer channels, trained as long as the dense one"
)
_LEGEND = (
    "untrained: pruned and reconstructed, the same for all policies; trained: the best trial of a budget (on "
    "the validation images) after a recovery, of {long} steps at the smaller sibling's GFLOPs and {short} "
    "below, which keeps untrained weights where they are better; dense and sibling as they ship"
)


@contextmanager
def _part(number: int, name: str, description: str) -> Iterator[None]:
    """Says what the next part of the demo does, and how long it took."""
    say("")
    say(f"[bold]{number}/{PARTS} {name}[/]: {description}", markup=True)
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
        val=VAL_IMAGES,
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


def _refuse_other_demo(config: Config) -> None:
    """Refuses the run directory of another demo before its data is replaced, which its run needs.

    Raises:
        RunError: names the settings that differ, or says that the weights do.
    """
    from autoprune.run.directory import RunDirectory
    from autoprune.run.resume import search_settings

    run = RunDirectory(config.out)
    run.check(search_settings(config, run))
    if run.config_file.is_file() and Path(str(run.config().weights)).name != Path(str(config.weights)).name:
        raise RunError(f"{run.path} holds a demo that began with or without --train; choose another --out")


def _search(config: Config) -> "SearchResult":
    from autoprune.search.pipeline import search

    return search(config)


def _recover(result: "SearchResult") -> "tuple[list[Compared], dict[int, int], list[Recovered]]":
    """The trials to compare; steps by trial and results of those recovered, the largest budget first."""
    from autoprune.cli.demo_comparison import choose, sibling_gflops
    from autoprune.recovery.recover import recover

    compared = choose(result)
    if not compared:
        raise AutopruneError(
            f"no trial of {result.run} is complete; see `{command_line('front', result.run)}`"
        )
    best = [item for item in compared if item.is_best]
    say("best: " + ", ".join(f"trial {item.trial} ({item.origin})" for item in best))
    gflops = sibling_gflops()
    beside = min(best, key=lambda item: abs(item.budget - gflops))
    steps = {
        item.trial: STEPS_AT_SIBLING if item is beside else SETTINGS["steps"]
        for item in best
        if item.budget <= beside.budget
    }
    return compared, steps, [recover(result.run, [trial], n)[0] for trial, n in steps.items()]


def _export(recovered: "Recovered", folder: Path) -> Path:
    """Writes the detector to ``folder`` and checks that it gives the same outputs when it is read back."""
    from autoprune.export import largest_difference, load, save_detector

    model = load(recovered.folder)
    save_detector(folder, model, recovered.policy)
    if largest_difference(model, load(folder), recovered.policy.input_size) != 0:
        raise AutopruneError(f"{folder} gives other outputs than {recovered.folder}")
    say("read back: its outputs are identical")
    return folder


def _compare(
    config: Config,
    compared: "Sequence[Compared]",
    steps: "Mapping[int, int]",
    recovered: "Sequence[Recovered]",
) -> "tuple[list[Entry], Entry, list[str]]":
    """The rows of the last table, the smaller sibling for the picture, and what the table shows in words."""
    from autoprune.cli.demo_comparison import compare, save_untrained
    from autoprune.cli.demo_table import sentences, sibling_entry, table_entries

    untrained = save_untrained(config.out, [item.trial for item in compared])
    comparison = compare(config, untrained, {item.metrics["trial"]: item.folder for item in recovered})
    sibling = sibling_entry(comparison, comparison.sibling_val_map)
    return table_entries(comparison, compared), sibling, sentences(comparison, compared, steps)


def _draw(result: "SearchResult", sibling: "Entry", out: Path) -> Path:
    from autoprune.report.entries import budgets_of, trial_entries
    from autoprune.report.plots import plot_front

    trials, dense = trial_entries(result)
    assert dense is not None  # a search measures it first
    title = f"autoprune demo: {len(trials)} trials, measured on {VAL_IMAGES} validation images"
    plot_front(out / FRONT_PICTURE, [*trials, sibling], dense, budgets_of(result), title)
    return out / FRONT_PICTURE


def _report(out: Path, findings: "Sequence[str]") -> Path:
    from autoprune.report.html import write_page
    from autoprune.report.run_summary import read_run_summary

    write_page(read_run_summary(out), out / REPORT_FILE, notes=findings)
    return out / REPORT_FILE


def _train(out: Path, data: Path, threads: int | None = None) -> Path:
    """Trains the dense detector from scratch, as `scripts/train_demo_detector.py` does."""
    import torch

    from autoprune.data.coco import open_data
    from autoprune.detectors import build, pixel_resizing, save_state
    from autoprune.training import TrainSettings
    from autoprune.training import train as fit

    weights = out / TRAINED_FILE
    if weights.exists():
        return weights
    if threads is not None:
        torch.set_num_threads(threads)
    model = build(demo_detector.MODEL)
    images = open_data(data, "train", pixel_resizing(model))
    settings = TrainSettings(**demo_detector.TRAINING)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    checkpoint = out / "dense_checkpoint.safetensors"
    trained = fit(model, images, settings, device, checkpoint=checkpoint, what="training").model
    save_state(trained, weights, dtype=torch.float16)
    checkpoint.unlink(missing_ok=True)
    return weights
