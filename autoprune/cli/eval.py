"""`autoprune eval`: COCOeval's twelve numbers and the mAP of each class."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.detectors import (
    COCO_CLASSES,
    build_dense,
    config_of_run,
    open_split,
    resolve_all,
    with_data_of,
    with_dense,
)
from autoprune.cli.settings import with_config
from autoprune.cli.terminal import show_table, working
from autoprune.config import Config
from autoprune.fields import weights_of_vendor
from autoprune.progress import count_of, say
from autoprune.report.tables import cost, points
from autoprune.run.names import POLICY_FILE

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from autoprune.data.coco import Split


@with_config(
    "Detector",
    "Data",
    "Machine",
    but=("input_size", "seed"),
    described={
        "num_classes": f"that of the weights, or {COCO_CLASSES}",
        "data": f"of a recovered detector that of its run, else {Config().data}",
        "val_fraction": "of a recovered detector that of its run",
        "labels": "as the detector stores them, else from the data",
    },
)
def evaluate(
    config: Config,
    flags: set[str],
    detector: Annotated[
        str | None,
        typer.Argument(
            metavar="DETECTOR",
            help="A folder with a recovered detector (with --weights: those, trained on elsewhere), a policy "
            "file (pruned from --weights, not recovered), or a name; default: --model with --weights.",
            show_default=False,
        ),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            "--split",
            metavar="NAME",
            help="Split of the data: val, test, train, any other that it has, or all.",
        ),
    ] = "val",
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images per forward pass.")] = 8,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Evaluate a detector on a data set: the twelve numbers of COCOeval, and the mAP of each class.

    The data may be in COCO's format, YOLO's or Pascal VOC's.
    """
    from autoprune.data.evaluate import evaluate as measure
    from autoprune.task.checks import pick_device

    device = pick_device(config)
    with working(quiet=as_json) as console:
        model, images, costs = _open(detector, config, flags, split, device, batch_size)
        content = {**measure(model, images, device, batch_size).to_dict(), **costs}
        if not as_json:
            _show(console, content, split)
    if as_json:
        print(json.dumps(content, indent=2))


def _open(
    argument: str | None,
    config: Config,
    flags: set[str],
    split: str,
    device: "torch.device",
    batch_size: int,
) -> "tuple[nn.Module, Split, dict[str, float]]":
    """The detector in eval mode, the images at its input size, and, of a policy file, the costs."""
    from autoprune.data.evaluate import check_boxes
    from autoprune.data.label_check import check_labels
    from autoprune.export.folder import graph_of, load_with_policy
    from autoprune.task.checks import refuse_missing
    from autoprune.task.labels import agreed_labels

    own_weights = weights_of_vendor(config.model)  # a folder of Transformers holds a dense detector
    if argument is None and config.weights not in (None, own_weights) and Path(config.weights).is_dir():
        argument, flags = config.weights, flags - {"weights"}
    costs: dict[str, float] = {}
    weights, key = None, None
    if argument is not None and (Path(argument) / POLICY_FILE).is_file() and "weights" in flags:
        weights, key, flags = config.weights, config.weights_key, flags - {"weights", "weights_key"}
    detector = resolve_all([] if argument is None else [argument], config, flags)[0]
    if detector.folder is not None:
        model: nn.Module
        model, loaded = load_with_policy(detector.folder, weights, key)
        stored: Mapping[int, str] | None = loaded.labels or None  # version 0.1.0 stored none
        run = config_of_run(detector.folder)
        if run is not None and "data" not in config.model_fields_set:
            config = with_data_of(run, config)
        spec = detector.spec
    else:
        stored = None if detector.policy is None else detector.policy.labels or None
        config = with_dense(detector, config)
        refuse_missing(config)
        model, spec = build_dense(detector, config)
        if detector.policy is not None:
            graph = graph_of(model, detector.policy)
            policy = detector.policy.with_costs(graph, argument or "the policy")
            costs = {name: policy.metrics[name] for name in ("gflops", "mparams")}
            model = policy.apply(model, graph)
    images = open_split(config, split, model, None if config.labels else stored)
    images = images.relabeled(agreed_labels(images, config, spec.num_classes, stored))
    say(images.labels_line)
    check_boxes(images)
    model = model.to(device)
    given = config.labels is not None
    check_labels(model, images, spec.num_classes, device, batch_size, given=given)
    return model, images, costs


def _show(console: "Console", content: dict[str, Any], split: str) -> None:
    from rich import box
    from rich.table import Table

    if "gflops" in content:
        console.print(f"{cost(content['gflops'])} GFLOPs, {cost(content['mparams'])} million parameters")
    console.print(f"{count_of(content['images'], 'image')} of {split}; points, as COCOeval computes them")
    for heading, values in (("metric", content["metrics"]), ("mAP of class", content["per_class"])):
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(heading, overflow="fold")
        table.add_column("points", justify="right")
        for name, value in values.items():
            table.add_row(name, points(value))
        show_table(console, table)
