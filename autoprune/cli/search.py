"""`autoprune search`: the study that finds the best policies within a budget."""

import json
from typing import TYPE_CHECKING, Annotated

import typer

from autoprune.cli.front import show_result
from autoprune.cli.settings import PANELS, refuse_useless, with_config
from autoprune.cli.terminal import show_table, tell, working
from autoprune.config import Config
from autoprune.errors import ConfigError
from autoprune.progress import count_of

if TYPE_CHECKING:
    from rich.table import Table

    from autoprune.recovery.proxy_check import ProxyCheck
    from autoprune.search.estimate import Estimate


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
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Estimate time, GPU-hours and disk of the search, or of what is left of it, by timing its "
            "parts here; nothing is written.",
            rich_help_panel="Search",
        ),
    ] = False,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", help="With --dry-run: print JSON instead of a table.", rich_help_panel="Search"
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
    if dry_run:
        _estimate(config, accept_data_change, as_json)
        return
    if as_json:
        raise ConfigError("--json prints the estimate of --dry-run; give both, or omit it")
    with working() as console:
        result = run(config, accept_data_change)
        if config.check_proxies and (check := load_check(result.run)) is not None:
            show_table(console, proxies_table(check))
        show_result(console, result)


def _estimate(config: Config, accept_data_change: bool, as_json: bool) -> None:
    """Prints what the search will cost."""
    from autoprune.search.dry_run import dry_run

    with working(quiet=as_json) as console:
        try:
            estimate = dry_run(config, accept_data_change)
        except KeyboardInterrupt:  # of the rehearsal, which says what it kept
            raise KeyboardInterrupt("no run was written, for it is a dry run") from None
        if not as_json:
            show_table(console, estimate_table(estimate))
            for line in estimate_lines(estimate):
                tell(console, line)
    if as_json:
        print(json.dumps(estimate.to_dict(), indent=2))


def estimate_table(estimate: "Estimate") -> "Table":
    """The parts of a search's time, and what lowers each."""
    from rich import box
    from rich.table import Table

    from autoprune.search.status import duration

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("part", "work", "time", "of all", "lower it by"):
        left = heading in ("part", "lower it by")
        table.add_column(heading, justify="left" if left else "right", no_wrap=True)
    for part in estimate.parts:
        of_all = f"{part.seconds / max(estimate.work_s, 1e-9):.0%}"
        table.add_row(part.name, part.count, duration(part.seconds), of_all, part.lower)
    return table


def estimate_lines(estimate: "Estimate") -> list[str]:
    """What the search does, what it costs in all, and what lowers that."""
    are = "is" if estimate.finished == 1 else "are"
    done = f" ({estimate.finished} {are} finished)" if estimate.finished else ""
    rungs = ", ".join(
        f"{count} reach{'es' if count == 1 else ''} rung {rung}" for rung, count in enumerate(estimate.rungs)
    )
    repeats = f", {count_of(estimate.repeats, 're-evaluation')}" if estimate.repeats else ""
    return [
        f"{count_of(estimate.trials, 'trial')}{done}{repeats}: {rungs}",
        *([] if estimate.unsearched is None else [estimate.unsearched]),
        estimate.summary(),
        estimate.advice(),
        f"no run was written or started; the estimate took {estimate.measuring_s:.0f} s",
    ]


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
