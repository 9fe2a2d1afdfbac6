"""`autoprune eval`: COCOeval's twelve numbers and the mAP of each class."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.detectors import build_dense, find, open_split, run_of
from autoprune.cli.settings import with_config
from autoprune.cli.terminal import working
from autoprune.config import Config
from autoprune.report.tables import points

if TYPE_CHECKING:
    from rich.console import Console
    from torch import nn

    from autoprune.data.coco import Split


@with_config("Detector", "Data", "Machine", but=("input_size", "seed"))
def evaluate(
    config: Config,
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="[DETECTOR]",
            help="A folder with a recovered detector, a policy file (pruned from --weights, not recovered), "
            "or a name; default: --model with --weights.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="NAME", help="val, test or train.")] = "val",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at once.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Evaluate a detector on COCO-format data: the twelve numbers, and mAP by class."""
    from autoprune.data.evaluate import evaluate as measure
    from autoprune.task.pruning_task import pick_device

    device = pick_device(config)
    with working(quiet=as_json) as console:
        model, images = _open(what, config, split)
        metrics = measure(model.to(device), images, device, batch_size)
        content = metrics.to_dict()
        if as_json:
            print(json.dumps(content, indent=2))
        else:
            _show(console, content, split)


def _open(what: str | None, config: Config, split: str) -> "tuple[nn.Module, Split]":
    """The detector in eval mode, and the images at the size that it works at."""
    if what is None and config.weights is not None and Path(config.weights).is_dir():
        what = config.weights
    named = find(what, config)
    if named.folder is not None:
        from autoprune.export import load

        model: nn.Module = load(named.folder)
        run = run_of(named.folder)
        if run is not None and "data" not in config.model_fields_set:
            config = config.model_copy(update={"data": run.data})
        return model, open_split(config, split, model)
    from autoprune.task.pruning_task import refuse_missing

    refuse_missing(config)
    model, _ = build_dense(named, config)
    if named.policy is not None:
        model = named.policy.apply(model)
    return model, open_split(config, split, model)


def _show(console: "Console", content: dict[str, Any], split: str) -> None:
    from rich import box
    from rich.table import Table

    console.print(f"{content['images']} images of {split}; points, as COCOeval computes them")
    for heading, values in (("metric", content["metrics"]), ("mAP of class", content["per_class"])):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(heading, overflow="fold")
        table.add_column("points", justify="right")
        for name, value in values.items():
            table.add_row(name, points(value))
        console.print(table)
