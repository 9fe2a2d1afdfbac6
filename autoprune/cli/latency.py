"""`autoprune latency`: measures detectors by interleaved timing, so that the machine's drift cancels."""

import dataclasses
import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.cli.detectors import COCO_CLASSES, NamedDetector, build_dense, input_size_of, resolve_all
from autoprune.cli.settings import parse_size, with_config
from autoprune.cli.terminal import show_table, tell, working
from autoprune.config import Config, ModelSpec
from autoprune.errors import ConfigError, out_of_memory
from autoprune.fields import Runtime
from autoprune.validation import brief

if TYPE_CHECKING:
    import torch
    from rich.console import Console
    from torch import nn

    from autoprune.latency.machine import LatencySetup
    from autoprune.latency.runners import Run
    from autoprune.latency.timing import Latency
    from autoprune.policy import Policy

    Stages = Mapping[str, Latency]
    Built = tuple[nn.Module, ModelSpec, Policy | None]


@with_config(
    "Detector",
    "Machine",
    but=("seed", "input_size"),
    useless=("model",),
    described={"num_classes": f"that of the weights, or {COCO_CLASSES}"},
)
def latency(
    config: Config,
    flags: set[str],
    detectors: Annotated[
        list[str],
        typer.Argument(
            metavar="DETECTOR",
            help="Detectors: names, policy files, or folders with a policy.yaml.",
        ),
    ],
    runtime: Annotated[
        Runtime,
        typer.Option(
            "--runtime",
            help="Where the network runs. All but torch time a detector's raw heads, if it has any, as ONNX.",
        ),
    ] = "torch",
    batch: Annotated[int, typer.Option("--batch", min=1, max=65_536, help="Images per forward pass.")] = 1,
    size: Annotated[
        str | None,
        typer.Option(
            "--size",
            "--input-size",
            metavar="HxW",
            help="Height and width of the images; default: those of the first detector or its policy.",
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option("--repeats", min=1, help="Timed forward passes per detector; their median is shown."),
    ] = 20,
    warmup_passes: Annotated[
        int,
        typer.Option(
            "--warmup-passes", min=0, help="Untimed forward passes per detector, before the timed ones."
        ),
    ] = 3,
    record: Annotated[
        bool,
        typer.Option(
            "--record",
            help="Add the result to latency.json and MODEL_CARD.md in each folder, with that of the first "
            "detector where it is the dense one of the folder's.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the latency of detectors by interleaved timing: preprocessing, network, postprocessing apart.

    The others are compared with the first one.
    """
    from autoprune.detectors import detector_inputs
    from autoprune.detectors.inputs import network_size
    from autoprune.latency.machine import LatencySetup
    from autoprune.latency.timing import interleaved
    from autoprune.task.checks import pick_device

    device = pick_device(config)
    with working(quiet=as_json) as console, ExitStack() as stack:
        named = resolve_all(detectors, config, flags)
        folders = {detector.label: detector.folder for detector in named if detector.folder is not None}
        if record and not folders:
            raise ConfigError("--record writes into folders of detectors, and none is given; omit it")
        if record:
            _check_cards(folders)
        built = {detector.label: _build(detector, config) for detector in named}
        models = {label: model.eval() for label, (model, _, _) in built.items()}
        input_size = config.input_size if size is None else parse_size(size, "--size")
        if input_size is None:
            input_size = input_size_of(named[0], models[named[0].label], config)
        height, width = input_size
        at = f"at --batch {batch} of {height}x{width} pixels on {device}"
        with out_of_memory(at, "lower --batch or --size", ConfigError):
            images = detector_inputs(input_size)[0] * batch
            runs: dict[str, Run] = {}
            for label, model in models.items():
                folder = Path(stack.enter_context(TemporaryDirectory(prefix="autoprune-")))
                runs[label] = _runner(model, images, runtime, device, config.threads, folder)
            latencies = interleaved(runs, repeats, warmup_passes)
        setup = LatencySetup(runtime, device, config.threads, input_size, batch)
        if record:
            _record(console, latencies, folders, setup, built)
        sizes = {label: network_size(model, input_size) for label, model in models.items()}
        first = models[named[0].label]
        title = setup.label if len(set(sizes.values())) > 1 else setup.label_of(first)
        if not as_json:
            _show(console, latencies, sizes, f"{title}; {repeats} interleaved passes each")
    if as_json:
        print(json.dumps(_as_json(latencies, sizes, title), indent=2))


def _runner(
    model: "nn.Module",
    images: "list[torch.Tensor]",
    runtime: str,
    device: "torch.device",
    threads: int | None,
    folder: Path,
) -> "Run":
    import torch

    from autoprune.detectors import pixel_resizing
    from autoprune.images.decode import resized_size
    from autoprune.latency.runners import in_file, in_torch

    height, width = images[0].shape[-2:]
    inside = resized_size((int(height), int(width)), pixel_resizing(model))
    # a batch that memory can't hold is refused here; image by image it would fill all memory first
    torch.empty(len(images), 3, *inside, device=device)
    if runtime == "torch":
        return in_torch(model.to(device), [image.to(device) for image in images])
    return in_file(model, images, inside, runtime, str(device), threads, folder)


def _check_cards(folders: Mapping[str, Path]) -> None:
    """Raises where a file of a folder is damaged, before minutes of timing are spent."""
    from autoprune.export.card import render

    for folder in folders.values():
        render(folder)


def _record(
    console: "Console",
    latencies: "Mapping[str, Stages]",
    folders: Mapping[str, Path],
    setup: "LatencySetup",
    built: "Mapping[str, Built]",
) -> None:
    """Writes the networks' times into the folders of their detectors; beside them that of the dense one.

    Args:
        console: says where the first detector is not the dense one of another's folder.
        latencies: by label.
        folders: by label.
        setup: where it was measured.
        built: by label the detector, its dense architecture, and the policy that it is pruned by.
    """
    from autoprune.export.card import add_latencies, write_card
    from autoprune.latency.networks import latency_row
    from autoprune.latency.runners import NETWORK

    first = next(iter(built))
    other, first_spec, first_policy = built[first]
    for name, folder in folders.items():
        model, spec, policy = built[name]
        dense = None
        if not (reason := _why_not_dense(first_spec, first_policy, spec)):
            dense = other, latencies[first][NETWORK]
        elif name != first:
            tell(console, f"{first} is not the dense detector of {folder}, whose card is without: {reason}")
        add_latencies(folder, [latency_row(setup, model, latencies[name][NETWORK], dense)])
        write_card(folder, policy)


def _why_not_dense(spec: ModelSpec, policy: "Policy | None", dense: ModelSpec) -> str:
    """In what a detector differs from a dense one; empty where it is that."""
    if policy is not None:
        return "it is pruned"
    pairs = {name: (getattr(spec, name), getattr(dense, name)) for name in ModelSpec.model_fields}
    different = ((name, *pair) for name, pair in pairs.items() if pair[0] != pair[1])
    return next((f"its {name} is {brief(own)}, not {brief(other)}" for name, own, other in different), "")


def _as_json(
    latencies: "Mapping[str, Stages]", sizes: Mapping[str, tuple[int, int]], label: str
) -> dict[str, object]:
    detectors = {
        name: {stage: dataclasses.asdict(value) for stage, value in stages.items()}
        for name, stages in latencies.items()
    }
    return {"label": label, "network_sizes": sizes, "detectors": detectors}


def _show(
    console: "Console", latencies: "Mapping[str, Stages]", sizes: Mapping[str, tuple[int, int]], title: str
) -> None:
    """A table: per detector the median of each stage, and its network relative to the first one's.

    Where detectors make different sizes of the same images, each says what its network sees.
    """
    from rich import box
    from rich.table import Table

    from autoprune.latency.runners import NETWORK, STAGES

    tell(console, title)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("ms, median (p10 to p90)", overflow="fold")
    if differ := len(set(sizes.values())) > 1:
        table.add_column("network sees", justify="right", no_wrap=True)
    present = [stage for stage in STAGES if any(stage in stages for stages in latencies.values())]
    for stage in present:
        table.add_column(stage, justify="right")
    table.add_column("network", justify="right")
    first = next(iter(latencies.values()))[NETWORK].median_ms
    for name, stages in latencies.items():
        cells = [_cell(stages[stage], stage == NETWORK) if stage in stages else "-" for stage in present]
        if differ:
            cells.insert(0, "{}x{}".format(*sizes[name]))
        table.add_row(name, *cells, f"{stages[NETWORK].median_ms / first:.0%}")
    show_table(console, table)


def _cell(value: "Latency", with_spread: bool) -> str:
    spread = f" ({value.p10_ms:.1f} to {value.p90_ms:.1f})" if with_spread else ""
    return f"{value.median_ms:.1f}{spread}"


def _build(detector: NamedDetector, config: Config) -> "Built":
    """The detector, its dense architecture and its policy; without weights one of the same latency."""
    from autoprune.export.folder import graph_of, load_with_policy
    from autoprune.graph import prune

    if detector.folder is not None:
        model, policy = load_with_policy(detector.folder)
        return model, policy.model, policy
    model, spec = build_dense(detector, config)
    if detector.policy is None:
        return model, spec, None
    graph = graph_of(model, detector.policy)
    policy = detector.policy.with_costs(graph, detector.label)
    return prune(policy.resized(model), graph, keep=policy.keep), spec, policy
