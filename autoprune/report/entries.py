"""A run's trials as entries of tables and plots, and the lines that sum up how they ended."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from autoprune.files import naming_paths
from autoprune.progress import count_of
from autoprune.ranges import to_ranges
from autoprune.report.tables import Entry, Kind, points
from autoprune.run.documents import METRICS
from autoprune.run.names import METRICS_FILE, RECOVERED_FOLDER
from autoprune.space.input_size import INPUT_PX
from autoprune.study.trials import origin_label

if TYPE_CHECKING:
    from autoprune.run.results import SearchResult
    from autoprune.study.records import Record

REASONS_SHOWN = 3
RACED_SHOWN = 6
ENDS = {
    "complete": "complete",
    "stopped": "stopped early",
    "failed": "failed",
    "running": "in flight",
    "interrupted": "interrupted",
}
"""The states of trials, in words."""


def trial_entries(
    result: "SearchResult", states: Collection[str] = ("complete",)
) -> tuple[list[Entry], Entry | None]:
    """The trials of a run, and its dense detector if that is measured, for tables and plots.

    Args:
        result: of the search.
        states: of the trials; the mAP of one that was stopped is not comparable, which its note says.
    """
    on_front = {point.trial for point in result.front}
    recovered = recovered_metrics(result.run)
    trials = [
        _entry(
            f"trial {record.number}",
            kind_of(record.origin),
            record.metrics,
            recovered_map=recovered_map(recovered.get(record.number)),
            on_front=record.number in on_front,
            like_best=record.number in result.like_best,
            origin=origin_label(record.origin),
            pixels=record.pixels,
            note=outcome(record).removeprefix("complete").removeprefix(", "),
        )
        for record in result.records
        if record.counts and record.state in states and record.metrics
    ]
    if not result.dense:
        return trials, None
    return trials, _entry("dense", "dense", result.dense, pixels=result.dense.get(INPUT_PX))


def outcome(record: "Record") -> str:
    """How a trial ended, and what its mAP is where it is not that of one evaluation at the top rung."""
    rung = f"stopped at rung {len(record.rungs) - 1}"
    if record.raced is not None:
        return f"{rung} by racing after {record.raced} images (mAP estimated)"
    if record.state == "stopped" and record.rungs:
        return rung
    return f"complete, mean of {len(record.maps)}" if record.again else record.state


def kind_of(origin: str) -> Kind:
    """The kind of a trial in tables and plots, from its origin in the study."""
    if origin.partition(" at ")[0] == "uniform":  # at a smaller input size too
        return "uniform"
    return "searched" if origin == "sampler" else "one-shot"


@naming_paths()
def recovered_metrics(run: Path) -> dict[int, dict[str, Any]]:
    """Content of `metrics.json` of each recovered trial, by trial number.

    Raises:
        RunError: one of the files can't be read.
    """
    metrics: dict[int, dict[str, Any]] = {}
    folder = run / RECOVERED_FOLDER
    for trial in sorted(folder.iterdir()) if folder.exists() else ():  # `glob` skips what can't be read
        number = trial.name.removeprefix("trial-")
        if number.isdecimal() and (trial / METRICS_FILE).is_file():
            metrics[int(number)] = METRICS.read(trial / METRICS_FILE)
    return metrics


def recovered_map(metrics: Mapping[str, Any] | None) -> float | None:
    """MAP on the validation split after recovery, a fraction; ``None`` without a recovery."""
    return None if metrics is None else float(metrics["metrics"]["map"])


def budgets_of(result: "SearchResult") -> list[float]:
    """The GFLOPs that a run's trials were projected onto, the largest first."""
    budgets = {record.budget for record in result.records if record.counts}
    return sorted((budget for budget in budgets if budget is not None), reverse=True)


def outcome_lines(
    result: "SearchResult", all_reasons: str = "front --all lists all", most: int | None = REASONS_SHOWN
) -> list[str]:
    """How the trials ended, why some failed, and what the search gained, one line each.

    Args:
        result: of the search.
        all_reasons: where the reasons are listed that are not shown here.
        most: failed trials to show; ``None``: all.
    """
    from autoprune.run.results import indistinct
    from autoprune.study.confirm import SEED_DEVIATION

    counted = [record for record in result.records if record.counts]
    states = {state: [record for record in counted if record.state == state] for state in ENDS}
    lines = [_count_line({state: len(records) for state, records in states.items()})]
    if raced := [record for record in states["stopped"] if record.raced is not None]:
        seen = ", ".join(f"trial {record.number} ({record.raced})" for record in raced[:RACED_SHOWN])
        more = f" and {len(raced) - RACED_SHOWN} more" if len(raced) > RACED_SHOWN else ""
        lines.append(
            f"  {len(raced)} by racing, known to be worse on these images after so many of them: {seen}{more}"
        )
    lines += [f"  trial {record.number} {record.failure}" for record in result.failed[:most]]
    if most is not None and len(result.failed) > most:
        lines.append(f"  and {len(result.failed) - most} more ({all_reasons})")
    if repeated := [record for record in states["complete"] if record.again]:
        shown = ", ".join(f"trial {r.number} ({' then '.join(map(points, r.maps))})" for r in repeated)
        lines.append(f"top candidates re-evaluated with another seed, their means count: {shown}")
    if close := sorted(result.like_best):
        trials = "trial" if len(close) == 1 else "trials"
        lines.append(
            "≈ within two paired errors of the best of the budget on these images (another seed moves a "
            f"trial by some {100 * SEED_DEVIATION:.1f} points more): {trials} {to_ranges(close)}"
        )
    lines += _gain_lines(states["complete"])
    lines += _set_aside_lines(result)
    return lines if (warning := indistinct(result)) is None else [*lines, warning]


def _count_line(counts: Mapping[str, int]) -> str:
    """How many trials there are in each state; a killed search leaves some interrupted."""
    from autoprune.study.records import UNFINISHED

    parts = [f"{count} {ENDS[state]}" for state, count in counts.items() if count or state not in UNFINISHED]
    return f"{count_of(sum(counts.values()), 'trial')}: {', '.join(parts)}"


def _set_aside_lines(result: "SearchResult") -> list[str]:
    """The trials that were measured on other data, one line for each change of the data."""
    numbers = {record.number for record in result.records if record.other_data and record.is_first}
    lines = []
    for change in result.earlier_data:
        if not (trials := sorted(numbers.intersection(change["trials"]))):
            continue
        counts = change.get("data", {}).get("validation data", {})
        data = "other data" + (
            f" ({count_of(counts['images'], 'image')}, {counts['boxes']} boxes)" if counts else ""
        )
        dense = change.get("dense") or {}
        there = f", where the dense detector has {points(dense['map'])} mAP" if dense else ""
        lines.append(
            f"set aside, neither counted nor ranked: {count_of(len(trials), 'trial')} "
            f"({to_ranges(trials)}) measured on {data}{there}; front --json and trials.csv list them"
        )
    return lines


def _entry(name: str, kind: Kind, metrics: Mapping[str, float], **attributes: Any) -> Entry:
    costs = (metrics["gflops"], metrics["mparams"], metrics.get("latency_ms"))
    return Entry(name, kind, metrics["map"], *costs, **attributes)


def _gain_lines(complete: "Sequence[Record]") -> list[str]:
    """By how much the search beat each warm start at each budget, in proxy mAP, ± the paired error."""
    from autoprune.study.compare import best_of, paired

    lines = []
    for budget in sorted({r.budget for r in complete if r.budget is not None}, reverse=True):
        here = [record for record in complete if record.budget == budget]
        origins = dict.fromkeys(record.origin for record in here)
        best = {origin: best_of([each for each in here if each.origin == origin]) for origin in origins}
        if (searched := best.pop("sampler", None)) is None or not best:
            continue
        value = searched.metrics["map"]
        errors = {origin: paired(searched, other) for origin, other in best.items()}
        gains = ", ".join(
            f"{100 * (value - other.metrics['map']):+.1f}{_plus_minus(errors[origin])} on {origin}"
            for origin, other in best.items()
        )
        said = "; ± paired error" if any(error is not None for error in errors.values()) else ""
        lines.append(
            f"proxy mAP of the search's best at {budget:.2f} GFLOPs: {100 * value:.1f} ({gains}{said})"
        )
    return lines


def _plus_minus(error: float | None) -> str:
    return "" if error is None else f" ± {100 * error:.1f}"
