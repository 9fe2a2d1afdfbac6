"""`autoprune front`: what a search has found so far, as a table, a picture, and what to type next."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.terminal import output, tell
from autoprune.report.tables import Entry, Kind
from autoprune.report.tables import front as front_table

if TYPE_CHECKING:
    from rich.console import Console

    from autoprune.search.results import SearchResult
    from autoprune.search.trials import Record

PICTURE = "front.png"
REASONS_SHOWN = 3


def front(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run directory of a search.")],
    every: Annotated[bool, typer.Option("--all", help="List every finished trial.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
) -> None:
    """Show the front of a run beside the dense detector and the warm starts; writes front.png there."""
    from autoprune.search.results import load_result

    result = load_result(run)
    if as_json:
        print(json.dumps(_as_json(result), indent=2))
    else:
        show_result(output(), result, every)


def show_result(console: "Console", result: "SearchResult", every: bool = False) -> None:
    """Prints the table of a run and what to do next, and draws its front."""
    from autoprune.proxies import load_check
    from autoprune.report.plots import plot_front

    trials, dense = entries(result)
    complete = [record for record in result.records if record.counts and record.state == "complete"]
    budgets = sorted({record.budget for record in complete if record.budget is not None}, reverse=True)
    if trials and dense is not None:
        shown = [entry for entry in trials if every or entry.on_front or entry.kind != "searched"]
        console.print(front_table(shown, dense, title=f"front of {result.run}"))
        plot_front(result.run / PICTURE, trials, dense, budgets, f"{result.run}: {len(trials)} trials")
    for line in _account(result):
        console.print(line, markup=False)
    if (check := load_check(result.run)) is not None:
        console.print(check.verdict, markup=False)
    if trials and dense is not None:
        tell(console, f"picture: {result.run / PICTURE}")
    if result.best is not None:
        tell(console, f"next: autoprune recover {result.run} --trial {result.best.trial}")


def entries(result: "SearchResult") -> tuple[list[Entry], Entry | None]:
    """The complete trials of a run, and its dense detector if that is measured, for tables and plots.

    Trials that were stopped at a lower rung are left out: their mAP does not compare.
    """
    best = {point.trial for point in result.front}
    trials = [
        _entry(
            f"trial {record.number}",
            kind_of(record.origin),
            record.metrics,
            recovered_map=_recovered_map(result.run, record.number),
            on_front=record.number in best,
            origin="searched" if record.origin == "sampler" else record.origin,
        )
        for record in result.records
        if record.counts and record.state == "complete"
    ]
    return trials, _entry("dense", "dense", result.dense) if result.dense else None


def kind_of(origin: str) -> Kind:
    """How a trial came about, in the words of tables and plots."""
    if origin == "uniform":
        return "uniform"
    return "searched" if origin == "sampler" else "one-shot"


def _entry(name: str, kind: Kind, metrics: "Mapping[str, float]", **more: Any) -> Entry:
    costs = (metrics["gflops"], metrics["mparams"], metrics.get("latency_ms"))
    return Entry(name, kind, metrics["map"], *costs, **more)


def _recovered_map(run: Path, trial: int) -> float | None:
    from autoprune.search.rundir import RunDirectory

    file = RunDirectory(run).recovered_folder(trial) / "metrics.json"
    if not file.is_file():
        return None
    return float(json.loads(file.read_text(encoding="utf-8"))["metrics"]["map"])


def _account(result: "SearchResult") -> list[str]:
    """How the trials ended, why some failed, and where the time went."""
    from autoprune.search.results import indistinct

    counted = [record for record in result.records if record.counts]
    states = {state: [r for r in counted if r.state == state] for state in ("complete", "stopped", "failed")}
    lines = [
        f"{len(counted)} trials: {len(states['complete'])} complete, "
        f"{len(states['stopped'])} stopped at a lower rung, {len(states['failed'])} failed"
    ]
    lines += [f"  trial {record.number} failed: {record.reason}" for record in result.failed[:REASONS_SHOWN]]
    if len(result.failed) > REASONS_SHOWN:
        lines.append(f"  and {len(result.failed) - REASONS_SHOWN} more (--json lists all)")
    lines += _gains(states["complete"])
    return lines if (warning := indistinct(result)) is None else [*lines, warning]


def _gains(complete: "Sequence[Record]") -> list[str]:
    """By how much the search beat the warm starts, in mAP of the proxies, at each budget."""
    lines = []
    for budget in sorted({r.budget for r in complete if r.budget is not None}, reverse=True):
        best: dict[str, float] = {}
        for record in complete:
            if record.budget == budget:
                best[record.origin] = max(record.metrics["map"], best.get(record.origin, 0.0))
        if (found := best.pop("sampler", None)) is not None and best:
            gains = ", ".join(f"{100 * (found - value):+.1f} on {origin}" for origin, value in best.items())
            lines.append(
                f"proxy mAP of the search's best at {budget:.2f} GFLOPs: {100 * found:.1f} ({gains})"
            )
    return lines


def _as_json(result: "SearchResult") -> dict[str, Any]:
    front_numbers = {point.trial for point in result.front}
    return {
        "run": str(result.run),
        "dense": dict(result.dense),
        "seconds": dict(result.seconds),
        "trials": [
            {
                "trial": record.number,
                "state": record.state,
                "origin": record.origin,
                "budget_gflops": record.budget,
                "on_front": record.number in front_numbers,
                "metrics": dict(record.metrics),
                "ranked_by": list(record.ranked_by),
                "reason": record.reason,
                "recovered_map": _recovered_map(result.run, record.number),
            }
            for record in result.records
            if record.counts
        ],
    }
