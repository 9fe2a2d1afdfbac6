"""`autoprune space`: importance becomes bounds on every group's pruning ratio, in YAML for people."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from autoprune.cli.settings import with_config
from autoprune.cli.terminal import tell, working
from autoprune.config import Config
from autoprune.errors import RunError


@with_config(
    "Detector",
    "Data",
    "criterion",
    "importance_images",
    "latency_runtime",
    "Machine",
)
def space(
    config: Config,
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="YAML file to write.")] = Path(
        "space.yaml"
    ),
    granularity: Annotated[
        Literal["layer", "block", "stage"],
        typer.Option(
            "--granularity",
            help="What shares one pruning ratio: stage for a dozen trials, layer for 32 or more.",
        ),
    ] = "layer",
    round_to: Annotated[
        int, typer.Option("--round-to", min=1, help="Kept widths are multiples of this.")
    ] = 8,
    min_width: Annotated[
        int, typer.Option("--min-width", min=1, help="Smallest number of channels a group keeps.")
    ] = 8,
    measure_steps: Annotated[
        bool,
        typer.Option(
            "--measure-steps",
            help="Time the layers, and give each group the multiple in which this device's time really "
            "falls, in place of --round-to.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Score the channels and write the search space: for each group its largest pruning ratio."""
    from autoprune.latency.fit import group_steps
    from autoprune.search.plan import warm_criteria
    from autoprune.space.derive import derive_space, resolve, save_space, with_steps
    from autoprune.task.pruning_task import load_task, score_several, scores_beside

    if to.exists() and not force:
        raise RunError(f"{to} exists already, and may hold your edits; give another --to, or --force")
    with working() as console:
        task = load_task(config)
        console.print(f"scoring the channels of {len(task.graph.prunable)} groups by {config.criterion}")
        # what a search's warm starts need beside the criterion costs no further pass over the images
        scores = score_several(task, warm_criteria(config.criterion), scores_beside(to))
        importance = scores[config.criterion]
        file = derive_space(
            task.graph,
            importance,
            task.spec,
            task.input_size,
            config.criterion,
            granularity=granularity,
            round_to=round_to,
            min_width=min_width,
        )
        if measure_steps:
            steps = group_steps(task)
            file = with_steps(file, steps)
            counts = {step: list(steps.values()).count(step) for step in sorted({*steps.values()})}
            told = ", ".join(f"{step} for {count} groups" for step, count in counts.items())
            console.print(f"steps measured in {config.latency_runtime} on {task.device}: {told or 'none'}")
        save_space(to, file, task.graph, importance)
        found = resolve(file, task.graph)
        least, dense = (float(found.cost("gflops", widths)) for widths in (found.lowest, found.dense))
        console.print(
            f"wrote {to}: {len(found.variables)} ratios to search, {dense:.2f} down to {least:.2f} GFLOPs "
            f"({least / dense:.0%}); edit it freely"
        )
        tell(console, f"next: autoprune search --space {to} --budget-gflops 50%")
