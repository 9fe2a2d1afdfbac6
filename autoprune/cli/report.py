"""`autoprune report`: one HTML page about a run, finished or not."""

from pathlib import Path
from typing import Annotated

import typer

from autoprune.cli.terminal import output, tell
from autoprune.progress import count_of
from autoprune.run.names import FRONT_PICTURE, REPORT_FILE, TRIALS_FILE


def report(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a search.")],
    to: Annotated[
        Path | None,
        typer.Option("--to", metavar="FILE", help="The page to write; default: report.html in RUN."),
    ] = None,
    png: Annotated[
        bool, typer.Option("--png", help="Also write the front as front.png, beside the page.")
    ] = False,
    csv: Annotated[
        bool,
        typer.Option("--csv", help="Also write all trials with their widths as trials.csv, beside the page."),
    ] = False,
    images: Annotated[
        bool, typer.Option("--images/--no-images", help="Show sample images of the validation data.")
    ] = True,
) -> None:
    """Write one HTML page about a run: front, layers, sample images, recovery, search; works offline."""
    from autoprune.report.entries import budgets_of, trial_entries
    from autoprune.report.html import write_page
    from autoprune.report.plots import plot_front
    from autoprune.report.run_summary import read_run_summary
    from autoprune.report.trials import write_trials

    console = output()
    summary = read_run_summary(run)
    page = run / REPORT_FILE if to is None else to
    write_page(summary, page, images)
    tell(console, f"page: {page}")
    if png:
        trials, dense = trial_entries(summary.result)
        if dense is None:
            console.print("no front.png: the dense detector is not measured yet")
        else:
            title = f"{run}: {count_of(len(trials), 'complete trial')}"
            plot_front(page.with_name(FRONT_PICTURE), trials, dense, budgets_of(summary.result), title)
            tell(console, f"picture: {page.with_name(FRONT_PICTURE)}")
    if csv:
        write_trials(page.with_name(TRIALS_FILE), summary)
        tell(console, f"trials: {page.with_name(TRIALS_FILE)}")
