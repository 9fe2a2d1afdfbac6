"""`autoprune export`: a recovered detector as a folder of its own, checked by reading it back."""

import json
from pathlib import Path
from typing import Annotated

import typer

from autoprune.cli.terminal import output, tell
from autoprune.errors import AutopruneError, RunError


def export(
    source: Annotated[
        Path,
        typer.Argument(metavar="RUN|DIR", help="A run directory, or the folder of one recovered detector."),
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="Folder to write; it must not exist yet.")],
    trial: Annotated[
        int | None,
        typer.Option(
            "--trial",
            metavar="N",
            help="Of a run: which trial; default: the recovered one with the best mAP.",
        ),
    ] = None,
) -> None:
    """Write a recovered detector to a folder: policy.yaml and model.safetensors; then compare its outputs."""
    from autoprune.export import largest_difference, load, save_detector
    from autoprune.policy import Policy

    folder = source if (source / "policy.yaml").is_file() else _recovered(source, trial)
    refuse_existing(to)
    model, policy = load(folder), Policy.load(folder / "policy.yaml")
    save_detector(to, model, policy)
    difference = largest_difference(model, load(to), policy.input_size)
    if difference != 0:
        raise AutopruneError(f"{to} gives other outputs than {folder}: they differ by {difference:.3g}")
    console = output()
    tell(console, f"wrote {to}: policy.yaml and model.safetensors of {folder}")
    console.print("read back: the outputs on a random image are identical")
    tell(console, f'next: autoprune eval {to}, or autoprune.load("{to}") in Python')


def refuse_existing(folder: Path) -> None:
    """Keeps what stands in the way.

    Raises:
        RunError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise RunError(f"{folder} exists already; choose another --to")


def _recovered(run: Path, trial: int | None) -> Path:
    """The folder of a recovered trial.

    Raises:
        RunError: the run has none, or not this one.
    """
    from autoprune.search.rundir import RunDirectory

    directory = RunDirectory(run)
    directory.config()  # says so where this is no run
    scores = {
        file.parent: float(json.loads(file.read_text(encoding="utf-8"))["metrics"]["map"])
        for file in directory.recovered.glob("trial-*/metrics.json")
    }
    wanted = None if trial is None else directory.recovered_folder(trial)
    if not scores or wanted not in {None, *scores}:
        which = "" if trial is None else f" {trial}"
        option = "" if trial is None else f" --trial {trial}"
        raise RunError(f"{run} has no recovered trial{which}; first `autoprune recover {run}{option}`")
    return wanted or max(scores, key=lambda folder: scores[folder])
