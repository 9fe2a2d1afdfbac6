"""`autoprune front`: what a search has found so far, as a table, a picture, and what to type next."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from autoprune.cli.terminal import output
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
    if trials and dense is not None:
        console.print(f"picture: {result.run / PICTURE}", markup=False)
    if result.best is not None:
        console.print(f"next: autoprune recover {result.run} --trial {result.best.trial}", markup=False)


def entries(result: "SearchResult") -> tuple[list[Entry], Entry | None]:
    """The complete trials of a run, and its dense detector if that is measured, for tables and plots.

    Trials that were stopped at a lower rung are left out: their mAP does not compare.
    """
    best = {point.trial for point in result.front}
    trials = [
        _entry(
            f"trial {record.number}", kind_of(record.origin), record.metrics, record.number in best, result
        )
        for record in result.records
        if record.counts and record.state == "complete"
    ]
    dense = _entry("dense", "dense", result.dense, False, result) if result.dense else None
    return trials, dense


def kind_of(origin: str) -> Kind:
    """How a trial came about, in the words of tables and plots."""
    if origin == "uniform":
        return "uniform"
    return "greedy" if origin.startswith("greedy") else "searched"


def _entry(name: str, kind: Kind, metrics: Any, on_front: bool, result: "SearchResult") -> Entry:
    latency = metrics.get("latency_ms")
    return Entry(
        name=name,
        kind=kind,
        map=metrics["map"],
        gflops=metrics["gflops"],
        mparams=metrics["mparams"],
        latency_ms=latency,
        recovered_map=None if kind == "dense" else _recovered_map(result.run, int(name.split()[1])),
        on_front=on_front,
    )


def _recovered_map(run: Path, trial: int) -> float | None:
    from autoprune.search.rundir import RunDirectory

    file = RunDirectory(run).recovered_folder(trial) / "metrics.json"
    if not file.is_file():
        return None
    return float(json.loads(file.read_text(encoding="utf-8"))["metrics"]["map"])


def _account(result: "SearchResult") -> list[str]:
    """How the trials ended, why some failed, and where the time went."""
    counted = [record for record in result.records if record.counts]
    states = {state: [r for r in counted if r.state == state] for state in ("complete", "stopped", "failed")}
    lines = [
        f"{len(counted)} trials: {len(states['complete'])} complete, "
        f"{len(states['stopped'])} stopped at a lower rung, {len(states['failed'])} failed"
    ]
    lines += [f"  trial {record.number} failed: {record.reason}" for record in result.failed[:REASONS_SHOWN]]
    if len(result.failed) > REASONS_SHOWN:
        lines.append(f"  and {len(result.failed) - REASONS_SHOWN} more (--json lists all)")
    gains = _gains(states["complete"])
    return [*lines, *gains]


def _gains(complete: "Sequence[Record]") -> list[str]:
    """By how much the search beat the warm starts, in mAP of the proxies, at one budget."""
    lines = []
    for budget in sorted({r.budget for r in complete if r.budget is not None}, reverse=True):
        at = [record for record in complete if record.budget == budget]
        best = {
            kind: max((r.metrics["map"] for r in at if kind_of(r.origin) == kind), default=None)
            for kind in ("uniform", "greedy", "searched")
        }
        found = best["searched"]
        if found is None:
            continue
        against = [
            f"{100 * (found - value):+.1f} against {kind}"
            for kind in ("uniform", "greedy")
            if (value := best[kind]) is not None
        ]
        lines.append(
            f"at {budget:.2f} GFLOPs the best searched proxy has {100 * found:.1f} mAP"
            + (f": {', '.join(against)}" if against else "")
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
                "reason": record.reason,
                "recovered_map": _recovered_map(result.run, record.number),
            }
            for record in result.records
            if record.counts
        ],
    }
