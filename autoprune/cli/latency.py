"""`autoprune latency`: measures detectors side by side, in turns, so that the machine's drift cancels."""

import dataclasses
import json
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.cli.detectors import Named, build_dense, find, input_size_of
from autoprune.cli.settings import with_config
from autoprune.cli.terminal import working
from autoprune.config import Config
from autoprune.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn


@with_config("Detector", "Machine", but=("seed",))
def latency(
    config: Config,
    what: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL|POLICY|DIR…", help="Detectors' names, policy files, folders with a policy.yaml."
        ),
    ],
    repeats: Annotated[int, typer.Option("--repeats", min=1, help="Timed passes of each detector.")] = 20,
    warmup_passes: Annotated[
        int, typer.Option("--warmup-passes", min=0, help="Passes before the clock starts.")
    ] = 3,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Measure the latency of detectors on one image: the median of passes taken in turns."""
    from autoprune.cost.latency import measure
    from autoprune.models import detector_inputs
    from autoprune.search.subject import pick_device

    device = pick_device(config)
    models: dict[str, nn.Module] = {}
    size: tuple[int, int] | None = config.input_size
    for named in [find(name, config) for name in what]:
        if named.label in models:
            raise ConfigError(f"{named.label} is given twice; name each detector once")
        model = _build(named, config)
        size = size or input_size_of(named, model, config)
        models[named.label] = model.to(device)
    assert size is not None  # typer asks for one detector at least
    with working(quiet=as_json) as console:
        found = measure(models, detector_inputs(size, device), repeats, warmup_passes, device)
        if as_json:
            print(json.dumps({name: dataclasses.asdict(value) for name, value in found.items()}, indent=2))
            return
        console.print(f"one {size[0]}x{size[1]} image on {device}, {repeats} passes each, in turns")
        first = next(iter(found.values())).median_ms
        width = max(map(len, found))
        for name, value in found.items():
            console.print(f"{name:<{width}}  {value}  {value.median_ms / first:.0%}", markup=False)


def _build(named: Named, config: Config) -> "nn.Module":
    """The detector itself; a policy without weights keeps the shapes, and the time depends on no more."""
    if named.folder is not None:
        from autoprune.export import load

        return load(named.folder)
    model, _ = build_dense(named, config)
    if named.policy is None:
        return model
    from autoprune.graph import analyze, prune
    from autoprune.models import detector_inputs

    graph = analyze(model, detector_inputs(named.policy.input_size))
    named.policy.check(graph)
    return prune(model, graph, keep=named.policy.keep)
