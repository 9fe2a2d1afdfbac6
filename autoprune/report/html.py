"""`report.html`: one self-contained page, which opens anywhere without network."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import jinja2

from autoprune.cost.budget import UNITS, Metric, parse_budget
from autoprune.files import write_text
from autoprune.passwords import hide
from autoprune.policy import Policy
from autoprune.report.entries import kind_of, outcome, outcome_lines, recovered_map
from autoprune.report.headline import format_steps, make_headline, map_change, proxy_training
from autoprune.report.run_summary import RunSummary
from autoprune.report.samples import Sample, read_samples
from autoprune.report.tables import cost, points
from autoprune.run.directory import RunDirectory
from autoprune.run.names import POLICY_FILE
from autoprune.search.wall_time import PARTS
from autoprune.study.records import Record
from autoprune.study.trials import origin_label

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("draw.js", "charts.js", "details.js", "report.js")
OBJECTIVES = {"map": "mAP", "gflops": "GFLOPs", "latency_ms": "latency"}


def write_page(summary: RunSummary, to: Path, images: bool = True, notes: Sequence[str] = ()) -> None:
    """Writes the page of a run, finished or not.

    Args:
        summary: what the report shows of the run.
        to: the HTML file.
        images: show sample images, where a trial is recovered.
        notes: sentences to show below the headline.

    Raises:
        RunError: the page can't be written.
    """
    write_text(to, render(summary, images, notes))


def render(summary: RunSummary, images: bool = True, notes: Sequence[str] = ()) -> str:
    """The page as HTML; see `write_page`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "points": points,
        "cost": cost,
        "steps": format_steps,
        "proxy_training": proxy_training,
    }
    headline = make_headline(summary)
    shown = headline.trial if headline.trial in summary.recovered else None
    samples, missing = _samples(summary, shown) if images and shown is not None else ([], None)
    seconds = summary.result.seconds
    return environment.get_template("report.html").render(
        headline=headline,
        summary=summary,
        notes=notes,
        samples=samples,
        samples_missing=missing,
        classes=_classes(summary, shown),
        latencies=summary.latencies.get(shown, ()) if shown is not None else (),
        objectives=_join_words([OBJECTIVES[name] for name in summary.config.objectives]),
        lines=outcome_lines(summary.result, "all are in the table below") if summary.result.records else [],
        seconds=[(label, seconds.get(name, 0.0)) for name, label in PARTS.items()] if seconds else [],
        wall=seconds.get("wall", 0.0),
        trial_rows=_trial_rows(summary),
        recovered_rows=_recovered_rows(summary),
        settings=hide(RunDirectory(summary.run).config_file.read_text(encoding="utf-8")),
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        script="\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        data=_script_json(chart_data(summary, headline.trial)),
    )


def chart_data(summary: RunSummary, best: int | None) -> dict[str, Any]:
    """The data of the page's charts, ready for JSON; mAP as fractions.

    Args:
        summary: what the report shows of the run.
        best: number of the trial that is selected at first.
    """
    front = {point.trial for point in summary.result.front}
    dense = summary.result.dense
    dense_metrics = [metrics["dense"] for metrics in summary.recovered.values() if metrics.get("dense")]
    return {
        "dense": {name: dense.get(name) for name in ("map", "gflops", "mparams", "latency_ms")}
        if dense
        else None,
        "dense_map_on_all": next(map(recovered_map, dense_metrics), None),
        "trials": [_trial_data(summary, record, record.number in front) for record in summary.records],
        "groups": [asdict(group) for group in summary.groups],
        "budgets": {metric: _limits(summary, metric) for metric in UNITS},
        "axis": _axis(summary),
        "rungs": list(summary.config.rungs),
        "losses": {str(number): pairs for number, pairs in summary.losses.items()},
        "check": asdict(summary.check) if summary.check is not None else None,
        "best": best,
    }


def _trial_data(summary: RunSummary, record: Record, on_front: bool) -> dict[str, Any]:
    widths: Mapping[str, int] = record.widths
    recovered = summary.recovered.get(record.number)
    if recovered is not None:  # regrowth may have changed the widths
        file = RunDirectory(summary.run).recovered_folder(record.number) / POLICY_FILE
        if file.is_file():
            widths = {
                **{group.name: group.width for group in summary.groups},
                **Policy.load(file).kept_widths,
            }
    metrics = record.metrics
    return {
        "number": record.number,
        "state": record.state,
        "kind": kind_of(record.origin),
        "origin": origin_label(record.origin),
        "budget": record.budget,
        "front": on_front,
        **{name: metrics.get(name) for name in ("map", "gflops", "mparams", "latency_ms")},
        "rungs": [metrics["map"] for metrics in record.rungs],
        "recovered": None
        if recovered is None
        else {
            "map": recovered_map(recovered),
            **{name: recovered.get(name) for name in ("gflops", "mparams")},
        },
        "widths": [widths.get(group.name, group.width) for group in summary.groups]
        if record.widths
        else None,
    }


def _trial_rows(summary: RunSummary) -> list[dict[str, Any]]:
    """The rows of the trial table: complete trials first, then by mAP."""
    front = {point.trial for point in summary.result.front}
    order = {"complete": 0, "stopped": 1, "running": 2, "interrupted": 2, "failed": 3}
    records = sorted(
        summary.records,
        key=lambda record: (order[record.state], -record.metrics.get("map", -1), record.number),
    )
    dense = summary.result.dense.get("gflops")
    return [
        {
            "record": record,
            "origin": origin_label(record.origin),
            "on_front": record.number in front,
            "like_best": record.number in summary.result.like_best,
            "metrics": record.metrics,
            "gflops_fraction": record.metrics["gflops"] / dense
            if dense and "gflops" in record.metrics
            else None,
            "recovered": recovered_map(summary.recovered.get(record.number)),
            "outcome": outcome(record),
        }
        for record in records
    ]


def _recovered_rows(summary: RunSummary) -> list[dict[str, Any]]:
    """The recovered trials against the dense detector, the best first."""
    rows = [
        {
            "number": number,
            "origin": origin_label(metrics.get("origin", "sampler")),
            "map": metrics["metrics"]["map"],
            "change": map_change(metrics["metrics"]["map"], metrics["dense"]["metrics"]["map"]),
            "gflops_fraction": metrics["gflops"] / metrics["dense"]["gflops"],
            **{name: metrics[name] for name in ("gflops", "mparams")},
        }
        for number, metrics in summary.recovered.items()
        if metrics.get("dense")
    ]
    return sorted(rows, key=lambda row: -row["map"])


class _ClassAP(NamedTuple):
    """Average precision of one class by two detectors."""

    name: str
    dense: float
    pruned: float


def _classes(summary: RunSummary, number: int | None) -> list[_ClassAP]:
    """AP by class of a recovered trial, the largest loss first."""
    if number is None:
        return []
    pruned = summary.recovered[number]["per_class"]
    dense = summary.recovered[number]["dense"]["per_class"]
    rows = [_ClassAP(name, dense[name], pruned[name]) for name in dense if name in pruned]
    return sorted(rows, key=lambda row: row.pruned - row.dense)


def _samples(summary: RunSummary, number: int) -> tuple[Sequence[Sample], str | None]:
    return read_samples(RunDirectory(summary.run).recovered_folder(number))


def _join_words(words: Sequence[str]) -> str:
    """``mAP, GFLOPs and latency``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _axis(summary: RunSummary) -> Metric:
    """The cost on the x axis at first: GFLOPs, or the metric of the budgets or objectives instead."""
    config = summary.config
    candidates = [metric for metric in UNITS if getattr(config, f"budget_{metric}")]
    if not candidates:
        candidates = [metric for metric in UNITS if metric in config.objectives]
    return next((metric for metric in candidates if metric in summary.result.dense), "gflops")


def _limits(summary: RunSummary, metric: Metric) -> list[float]:
    """The budgets on a cost, as numbers; empty until the dense detector is measured."""
    dense = summary.result.dense.get(metric)
    budgets = getattr(summary.config, f"budget_{metric}") or ()
    texts = (budgets,) if isinstance(budgets, str) else budgets
    return [parse_budget(text, metric, dense).limit for text in texts] if dense else []


def _script_json(content: Any) -> str:
    """JSON that is safe inside a script element; NaN and infinities become null."""
    return json.dumps(_finite(content), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
