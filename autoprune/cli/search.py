"""`autoprune search`: the study that finds the best policies within a budget."""

from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.cli.front import show_result
from autoprune.cli.settings import PANELS, refuse_useless, with_config
from autoprune.cli.terminal import show_table, working
from autoprune.config import Config

if TYPE_CHECKING:
    from rich.table import Table

    from autoprune.recovery.proxy_check import ProxyCheck


@with_config(*PANELS)
def search(
    config: Config,
    flags: set[str],
    accept_data_change: Annotated[
        bool,
        typer.Option(
            "--accept-data-change",
            help="Go on where the images or boxes of a run have changed: the dense detector is measured "
            "again, and the trials so far are set aside, with their figures.",
            rich_help_panel="Data",
        ),
    ] = False,
) -> None:
    """Search for the policies with the most mAP within a budget; the same command resumes a run.

    Each trial prunes the detector by one policy, reconstructs it, recovers it for a few steps, and measures
    its mAP. Then `autoprune front` shows the best, and `autoprune recover` fine-tunes them in full. Where the
    run directory exists, settings that decide what the search is and are not given are those of the run.
    """
    from autoprune.recovery.proxy_check import load_check
    from autoprune.run.directory import RunDirectory
    from autoprune.run.resume import search_settings
    from autoprune.search.pipeline import search as run

    if config.engine != "ray":
        refuse_useless(
            flags, set(PANELS["Engine"]) - {"engine"}, "without --engine ray; give both, or omit it"
        )
    settings = search_settings(config, RunDirectory(config.out))
    if settings.budget_latency_ms is None and "latency_ms" not in settings.objectives:
        reason = "where no latency is measured; give --budget-latency-ms too, or omit it"
        refuse_useless(flags, {"latency_runtime"}, reason)
    if len(settings.rungs) == 1:
        refuse_useless(flags, {"rung_keep"}, "with one rung; give --rungs with several, or omit it")
    with working() as console:
        result = run(config, accept_data_change)
        if config.check_proxies and (check := load_check(result.run)) is not None:
            show_table(console, proxies_table(check))
        show_result(console, result)


def proxies_table(check: "ProxyCheck") -> "Table":
    """How well the scores at each rung rank trials by their mAP after recovery."""
    from rich.table import Table

    at = "" if check.budget_gflops is None else f" at {check.budget_gflops:.2f} GFLOPs"
    table = Table(title=f"proxies against mAP after {check.steps} steps{at}", title_justify="left")
    for heading in ("rung", "steps", "score", "trials", "Spearman's ρ (95%)", "Kendall's τ (95%)"):
        table.add_column(heading, justify="left" if heading == "score" else "right", no_wrap=True)
    for agreement in check.agreements:
        table.add_row(
            str(agreement.rung),
            str(agreement.steps),
            {"map": "mAP"}.get(agreement.score, agreement.score),
            str(agreement.trials),
            str(agreement.spearman),
            str(agreement.kendall),
        )
    return table
