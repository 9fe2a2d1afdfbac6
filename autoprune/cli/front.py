"""`autoprune front`: the state of a search as a table and a picture, and the next command."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.terminal import output, show_table, tell
from autoprune.progress import command_line, count_of
from autoprune.report.entries import (
    REASONS_SHOWN,
    budgets_of,
    outcome_lines,
    recovered_map,
    recovered_metrics,
    trial_entries,
)
from autoprune.report.tables import front as front_table
from autoprune.run.names import FRONT_PICTURE

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.run.results import SearchResult
    from autoprune.study.records import Record


def front(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a search.")],
    every: Annotated[
        bool,
        typer.Option(
            "--all",
            help="List every trial, those that were stopped or failed too, not only the front and the warm "
            "starts.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the front of a run beside the dense detector and the warm starts; writes front.png there."""
    from autoprune.run.results import load_result

    result = load_result(run)
    if as_json:
        print(json.dumps(_as_json(result), indent=2))
    else:
        show_result(output(), result, every)


def show_result(console: "Console", result: "SearchResult", every: bool = False) -> None:
    """Prints the table of a run and the next commands, and draws its front."""
    from autoprune.recovery.proxy_check import load_check
    from autoprune.report.plots import plot_front

    trials, dense = trial_entries(result)
    if trials and dense is not None:
        shown = [entry for entry in trials if entry.on_front or entry.kind != "searched"]
        all_entries, _ = trial_entries(result, ("complete", "stopped"))
        if every:
            shown = all_entries
        show_table(console, front_table(shown, dense, title=f"front of {result.run}"))
        if hidden := len(all_entries) - len(shown):
            more = f"{count_of(hidden, 'more trial')}: {command_line('front', result.run, '--all')}"
            tell(console, more)
        if result.front:
            console.print("● on the front: no other trial has at least its mAP at less cost", highlight=False)
        plot_front(
            result.run / FRONT_PICTURE,
            trials,
            dense,
            budgets_of(result),
            f"{result.run}: {count_of(len(trials), 'trial')}",
        )
    for line in outcome_lines(result, most=None if every else REASONS_SHOWN):
        console.print(line)
    if (check := load_check(result.run, result.set_aside)) is not None:
        console.print(check.verdict)
    if trials and dense is not None:
        tell(console, f"picture: {result.run / FRONT_PICTURE}")
        tell(console, f"full report: {command_line('report', result.run)}")
    if result.best is not None:
        tell(console, f"next: {command_line('recover', result.run, '--trial', result.best.trial)}")


def _as_json(result: "SearchResult") -> dict[str, Any]:
    front_numbers = {point.trial for point in result.front}
    recovered = recovered_metrics(result.run)
    set_aside = [record for record in result.records if record.other_data and record.is_first]

    def entry(record: "Record") -> dict[str, Any]:
        return {
            "trial": record.number,
            "state": record.state,
            "origin": record.origin,
            "budget_gflops": record.budget,
            **({} if record.pixels is None else {"input_px": record.pixels}),
            "on_front": record.number in front_numbers,
            "like_best": record.number in result.like_best,
            **({} if record.raced is None else {"stopped_by_racing_after_images": record.raced}),
            "metrics": dict(record.metrics),
            "measured_maps": record.maps,
            "ranked_by": list(record.ranked_by),
            "reason": record.reason,
            "recovered_map": recovered_map(recovered.get(record.number)),
        }

    return {
        "run": str(result.run),
        "dense": dict(result.dense),
        "seconds": dict(result.seconds),
        "trials": [entry(record) for record in result.records if record.counts],
        **({"measured_on_other_data": [entry(record) for record in set_aside]} if set_aside else {}),
    }
