"""`autoprune latency`: measures detectors side by side, in turns, so that the machine's drift cancels."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from autoprune.cli.detectors import Named, build_dense, find, input_size_of
from autoprune.cli.settings import parse_size, with_config
from autoprune.cli.terminal import tell, working
from autoprune.config import Config
from autoprune.errors import ConfigError

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from autoprune.latency.runners import Run
    from autoprune.latency.timing import Latency

    Stages = Mapping[str, Latency]


@with_config("Detector", "Machine", but=("seed", "input_size"))
def latency(
    config: Config,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|POLICY|DIR…", help="Detectors' names, policy files, folders with a policy.yaml."
        ),
    ],
    runtime: Annotated[
        Literal["torch", "onnxruntime", "openvino"],
        typer.Option(
            "--runtime", help="Where the network runs; of a one-stage detector, its raw heads in ONNX."
        ),
    ] = "torch",
    batch: Annotated[int, typer.Option("--batch", min=1, help="Images at once.")] = 1,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            "--input-size",
            metavar="HxW",
            help="Of an image; default: the policy's, or the detector's.",
        ),
    ] = None,
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed passes of each detector.")] = 20,
    warmup_passes: Annotated[
        int, typer.Option("--warmup-passes", min=0, help="Passes before the clock starts.")
    ] = 3,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Add the result to latency.json and MODEL_CARD.md in each folder, beside that of the first "
            "detector named.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the latency of detectors: medians of passes taken in turns, network and the rest apart."""
    from autoprune.detectors import detector_inputs
    from autoprune.latency.machine import label
    from autoprune.latency.timing import interleaved
    from autoprune.task.pruning_task import pick_device

    device = pick_device(config)
    asked = parse_size(size, "--size") if size is not None else config.input_size
    models: dict[str, nn.Module] = {}
    folders: dict[str, Path] = {}
    for named in [find(name, config) for name in what]:
        if named.label in models:
            raise ConfigError(f"{named.label} is given twice; name each detector once")
        model = _build(named, config)
        asked = asked or input_size_of(named, model, config)
        models[named.label] = model.eval()
        if named.folder is not None:
            folders[named.label] = named.folder
    assert asked is not None  # typer asks for one detector at least
    if record and not folders:
        raise ConfigError("--record writes into folders of detectors, and none is given; leave it away")
    with working(quiet=as_json) as console, ExitStack() as stack:
        images = detector_inputs(asked)[0] * batch
        runs: dict[str, Run] = {}
        for name, model in models.items():
            folder = Path(stack.enter_context(TemporaryDirectory(prefix="autoprune-")))
            runs[name] = _runner(model, images, runtime, device, config.threads, folder)
        found = interleaved(runs, repeats, warmup_passes)
        where = label(runtime, device, config.threads, batch, asked)
        if record:
            _record(found, folders, where)
        if as_json:
            print(json.dumps(_as_json(found, where), indent=2))
            return
        _show(console, found, f"{where}; {repeats} passes each, in turns")


def _runner(
    model: "nn.Module",
    images: "list[torch.Tensor]",
    runtime: str,
    device: "torch.device",
    threads: int | None,
    folder: Path,
) -> "Run":
    from autoprune.data.images import resized_size
    from autoprune.detectors import resize_rule
    from autoprune.latency.runners import in_file, in_torch

    if runtime == "torch":
        return in_torch(model.to(device), [image.to(device) for image in images])
    height, width = images[0].shape[-2:]
    inside = resized_size((int(height), int(width)), resize_rule(model))
    return in_file(model, images, inside, runtime, str(device), threads, folder)


def _record(found: "Mapping[str, Stages]", folders: Mapping[str, Path], where: str) -> None:
    """Keeps the networks' times beside the detectors they are of."""
    from autoprune.export.card import add_latencies, write_card
    from autoprune.latency.runners import NETWORK

    first = next(iter(found))
    for name, folder in folders.items():
        row = {"label": where, **dataclasses.asdict(found[name][NETWORK])}
        if name != first:
            row["dense_ms"] = found[first][NETWORK].median_ms
        add_latencies(folder, [row])
        write_card(folder)


def _as_json(found: "Mapping[str, Stages]", where: str) -> dict[str, object]:
    detectors = {
        name: {stage: dataclasses.asdict(value) for stage, value in stages.items()}
        for name, stages in found.items()
    }
    return {"label": where, "detectors": detectors}


def _show(console: "Console", found: "Mapping[str, Stages]", title: str) -> None:
    """A table: for each detector the median of each stage, and its network beside the first one's."""
    from rich import box
    from rich.table import Table

    from autoprune.latency.runners import NETWORK, STAGES

    tell(console, title)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("ms, median (p10 to p90)", overflow="fold")
    present = [stage for stage in STAGES if any(stage in stages for stages in found.values())]
    for stage in present:
        table.add_column(stage, justify="right")
    table.add_column("network", justify="right")
    first = next(iter(found.values()))[NETWORK].median_ms
    for name, stages in found.items():
        cells = [_cell(stages[stage], stage == NETWORK) if stage in stages else "-" for stage in present]
        table.add_row(name, *cells, f"{stages[NETWORK].median_ms / first:.0%}")
    console.print(table)


def _cell(value: "Latency", with_spread: bool) -> str:
    spread = f" ({value.p10_ms:.1f} to {value.p90_ms:.1f})" if with_spread else ""
    return f"{value.median_ms:.1f}{spread}"


def _build(named: Named, config: Config) -> "nn.Module":
    """The detector itself; a policy without weights keeps the shapes, and the time depends on no more."""
    if named.folder is not None:
        from autoprune.export import load

        return load(named.folder)
    model, _ = build_dense(named, config)
    if named.policy is None:
        return model
    from autoprune.detectors import detector_inputs
    from autoprune.graph import analyze, prune

    graph = analyze(model, detector_inputs(named.policy.input_size))
    named.policy.check(graph)
    return prune(model, graph, keep=named.policy.keep)
