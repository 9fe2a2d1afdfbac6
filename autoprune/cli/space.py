"""`autoprune space`: derives bounds on every group's pruning ratio from its importance, as YAML to edit."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer

from autoprune.cli.settings import PANELS, refuse_useless, with_config
from autoprune.cli.terminal import tell, working
from autoprune.config import Config
from autoprune.errors import RunError
from autoprune.progress import command_line, count_of

IN_SPACE = ("model", "model_arguments", "input_size", "criterion")
"""What a search takes from the space, where its own settings are silent."""

FOR_CURVES = {"reconstruct_images", "recalibration_images", "batch_size", *PANELS["Engine"]}


@with_config(
    "Detector",
    "Data",
    "criterion",
    "importance_images",
    "curves",
    "reconstruct_images",
    "recalibration_images",
    "batch_size",
    "empty_blocks",
    "latency_runtime",
    "Engine",
    "Machine",
)
def space(
    config: Config,
    flags: set[str],
    words: dict[str, list[object]],
    to: Annotated[Path, typer.Option("--to", metavar="FILE", help="YAML file to write.")] = Path(
        "space.yaml"
    ),
    granularity: Annotated[
        Literal["layer", "block", "stage"],
        typer.Option(
            "--granularity",
            help="Groups that share one pruning ratio. Fewer ratios need fewer trials: stage suits a dozen, "
            "layer 32 or more.",
        ),
    ] = "layer",
    round_to: Annotated[
        int, typer.Option("--round-to", min=1, help="Kept widths are multiples of this.")
    ] = 8,
    min_width: Annotated[
        int, typer.Option("--min-width", min=1, help="Smallest number of channels a group keeps.")
    ] = 8,
    measure_multiples: Annotated[
        bool,
        typer.Option(
            "--measure-multiples",
            help="Time the layers on this device, and give each group its hardware-friendly multiple (where "
            "latency really falls) instead of --round-to.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the file.")] = False,
) -> None:
    """Score the channels and write the search space: for each channel group its largest pruning ratio.

    The file is meant to be read and edited; `autoprune search --space FILE` searches it.
    """
    from autoprune.engines.table import ENGINES
    from autoprune.files import replaceable
    from autoprune.latency.multiples import measure_multiples as measure
    from autoprune.search.curves import score_curves
    from autoprune.search.plan import warm_criteria
    from autoprune.search.session import cluster_of
    from autoprune.space.derive import derive_space, with_multiples
    from autoprune.space.render import save_space
    from autoprune.space.resolve import resolve
    from autoprune.task.pruning_task import load_task
    from autoprune.task.scoring import missing_scores, score_several, scores_beside
    from autoprune.task.sensitivity import curves_beside

    if to.exists() and not force:
        raise RunError(f"{to} already exists and may hold your edits; give another --to, or --force")
    replaceable(to)
    if not config.curves:
        refuse_useless(flags, FOR_CURVES, "with --no-curves; omit one of them")
    if not measure_multiples:
        refuse_useless(flags, {"latency_runtime"}, "without --measure-multiples; give both, or omit it")
    with working() as console:
        if config.curves:
            ENGINES[config.engine].check(cluster_of(config))
        # unless curves are measured, nothing is pruned here
        task = load_task(config if config.curves else config.model_copy(update={"reconstruct_images": 0}))
        console.print(task.train.labels_line, highlight=False, markup=False)
        task.check_labels()
        groups = count_of(len(task.graph.prunable), "group")
        # the other criteria that a search's warm starts need come from the same pass over the images
        criteria, kept = warm_criteria(config.criterion), scores_beside(to)
        if missing := missing_scores(task, criteria, kept):
            named = config.criterion if config.criterion in missing else ", ".join(missing)
            console.print(f"scoring the channels of {groups} by {named}")
        else:
            tell(console, f"the scores of {groups} by {config.criterion} are read from {kept}")
        scores = score_several(task, criteria, kept)
        importance = scores[config.criterion]
        if config.curves:
            importance = score_curves(task, importance, curves_beside(to), config.empty_blocks)
        file = derive_space(
            task.graph,
            importance,
            task.spec,
            task.input_size,
            config.criterion,
            granularity=granularity,
            round_to=round_to,
            min_width=min_width,
            empty=config.empty_blocks,
        )
        if measure_multiples:
            multiples = measure(task.model, task.graph, task.latency_setup)
            file = with_multiples(file, multiples)
            counts = sorted(Counter(multiples.values()).items())
            shown = (
                ", ".join(f"{multiple} for {count_of(count, 'group')}" for multiple, count in counts)
                or "none"
            )
            console.print(f"multiples measured in {config.latency_runtime} on {task.device}: {shown}")
        save_space(to, file, task.graph, importance)
        bounds = resolve(file, task.graph)
        least, dense = (float(bounds.cost("gflops", widths)) for widths in (bounds.lowest, bounds.dense))
        console.print(
            f"wrote {to}: {len(bounds.variables)} ratios to search, {dense:.2f} down to {least:.2f} GFLOPs "
            f"({least / dense:.0%}); edit it freely"
        )
        widths = zip(bounds.names, bounds.dense.tolist(), bounds.variable_of.tolist(), strict=True)
        narrow = [name for name, width, variable in widths if variable >= 0 and width < round_to]
        if narrow and not measure_multiples:
            tell(
                console,
                f"{count_of(len(narrow), 'group')} narrower than --round-to {round_to} may have any width, "
                f"such as {narrow[0]}; frozen: true keeps one whole",
            )
        tell(console, f"next: {_next(config, to, words, file.has_empty_blocks)}")


def _next(config: Config, to: Path, words: Mapping[str, Sequence[object]], has_empty_blocks: bool) -> str:
    """The search of this space, with the settings that it was made with: they decide scores and curves.

    Args:
        config: the settings.
        to: the space.
        words: the options that were given; see `with_config`.
        has_empty_blocks: whether the space lets blocks go.
    """
    by_file = "config" in words
    left_out = {"empty_blocks"} if by_file else {"empty_blocks", *IN_SPACE}
    if config.engine != "ray":
        left_out |= set(PANELS["Engine"])
    if config.budget_latency_ms is None and "latency_ms" not in config.objectives:
        left_out.add("latency_runtime")
    following: list[object] = ["search", "--space", to]
    if not by_file and "weights" not in words and config.weights is not None:
        following += ["--weights", config.weights]  # the file that --model names
    following += [word for name, given in words.items() if name not in left_out for word in given]
    if by_file and not has_empty_blocks and (config.empty_blocks or "empty_blocks" in words):
        following.append("--no-empty-blocks")
    if not (config.budget_gflops or config.budget_mparams or config.budget_latency_ms):
        following += ["--budget-gflops", "50%"]
    return command_line(*following)
