"""`report.html`: one page that holds all it needs, so that it opens anywhere, without network."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jinja2

from autoprune.cost.budget import UNITS, Metric, parse_budget
from autoprune.files import write_text
from autoprune.policy import Policy
from autoprune.report.entries import account, found_by, kind_of, recovered_map
from autoprune.report.headline import after, difference, headline, steps
from autoprune.report.run_summary import RunSummary
from autoprune.report.samples import Sample, read_samples
from autoprune.report.tables import cost, points
from autoprune.run.directory import RunDirectory
from autoprune.search.wall_time import PARTS
from autoprune.study.trials import Record

PAGE = Path(__file__).parent / "page"
SCRIPTS = ("draw.js", "charts.js", "details.js", "report.js")
OBJECTIVES = {"map": "mAP", "gflops": "GFLOPs", "latency_ms": "latency"}


def write_page(facts: RunSummary, to: Path, images: bool = True) -> None:
    """Writes the page of a run, finished or not.

    Args:
        facts: what is known of the run.
        to: the HTML file.
        images: show sample images, where a trial is recovered.

    Raises:
        RunError: the page can't be written.
    """
    write_text(to, render(facts, images))


def render(facts: RunSummary, images: bool = True) -> str:
    """The page as HTML; see `write_page`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"points": points, "cost": cost, "after": after, "steps": steps}
    top = headline(facts)
    shown = top.trial if top.trial in facts.recovered else None
    samples, missing = _samples(facts, shown) if images and shown is not None else ([], None)
    seconds = facts.result.seconds
    return environment.get_template("report.html").render(
        top=top,
        facts=facts,
        samples=samples,
        samples_missing=missing,
        classes=_classes(facts, shown),
        latencies=facts.latencies.get(shown, ()) if shown is not None else (),
        objectives=_listed([OBJECTIVES[name] for name in facts.config.objectives]),
        lines=account(facts.result, "all are in the table below") if facts.records else [],
        seconds=[(name, seconds.get(name, 0.0)) for name in PARTS] if seconds else [],
        wall=seconds.get("wall", 0.0),
        rows=_rows(facts),
        recovered=_recovered(facts),
        settings=RunDirectory(facts.run).config_file.read_text(encoding="utf-8"),
        style=(PAGE / "report.css").read_text(encoding="utf-8"),
        script="\n".join((PAGE / name).read_text(encoding="utf-8") for name in SCRIPTS),
        data=_embedded(chart_data(facts, top.trial)),
    )


def chart_data(facts: RunSummary, best: int | None) -> dict[str, Any]:
    """What the page's charts are drawn from, as JSON has it; mAP as fractions.

    Args:
        facts: what is known of the run.
        best: number of the trial that is shown first.
    """
    front = {point.trial for point in facts.result.front}
    dense = facts.result.dense
    compared = [found for found in facts.recovered.values() if found.get("dense")]
    return {
        "dense": {name: dense.get(name) for name in ("map", "gflops", "mparams", "latency_ms")}
        if dense
        else None,
        "dense_map_on_all": next((recovered_map(found["dense"]) for found in compared), None),
        "trials": [_trial(facts, record, record.number in front) for record in facts.records],
        "groups": [asdict(group) for group in facts.groups],
        "budgets": {metric: _limits(facts, metric) for metric in UNITS},
        "axis": _axis(facts),
        "rungs": list(facts.config.rungs),
        "losses": {str(number): pairs for number, pairs in facts.losses.items()},
        "check": asdict(facts.check) if facts.check is not None else None,
        "best": best,
    }


def _trial(facts: RunSummary, record: Record, on_front: bool) -> dict[str, Any]:
    widths: Mapping[str, int] = record.widths
    recovered = facts.recovered.get(record.number)
    if recovered is not None:  # regrowth may have changed them
        file = RunDirectory(facts.run).recovered_folder(record.number) / "policy.yaml"
        if file.is_file():
            widths = {**{group.name: group.width for group in facts.groups}, **Policy.load(file).kept_widths}
    metrics = record.metrics
    return {
        "number": record.number,
        "state": record.state,
        "kind": kind_of(record.origin),
        "origin": found_by(record.origin),
        "budget": record.budget,
        "front": on_front,
        **{name: metrics.get(name) for name in ("map", "gflops", "mparams", "latency_ms")},
        "rungs": [found["map"] for found in record.rungs],
        "recovered": None
        if recovered is None
        else {
            "map": recovered_map(recovered),
            **{name: recovered.get(name) for name in ("gflops", "mparams")},
        },
        "widths": [widths.get(group.name, group.width) for group in facts.groups] if record.widths else None,
    }


def _rows(facts: RunSummary) -> list[dict[str, Any]]:
    """The trials for the table, the complete ones first, the best first."""
    front = {point.trial for point in facts.result.front}
    order = {"complete": 0, "stopped": 1, "running": 2, "failed": 3}
    records = sorted(
        facts.records, key=lambda record: (order[record.state], -record.metrics.get("map", -1), record.number)
    )
    dense = facts.result.dense.get("gflops")
    return [
        {
            "record": record,
            "origin": found_by(record.origin),
            "on_front": record.number in front,
            "metrics": record.metrics,
            "share": record.metrics["gflops"] / dense if dense and "gflops" in record.metrics else None,
            "recovered": recovered_map(facts.recovered.get(record.number)),
            "ended": f"stopped at rung {len(record.rungs) - 1}"
            if record.state == "stopped" and record.rungs
            else f"complete, mean of {len(record.maps)}"
            if record.again
            else record.state,
        }
        for record in records
    ]


def _recovered(facts: RunSummary) -> list[dict[str, Any]]:
    """The recovered trials against the dense detector, the best first."""
    rows = [
        {
            "number": number,
            "origin": found_by(metrics.get("origin", "sampler")),
            "map": metrics["metrics"]["map"],
            "change": difference(metrics["metrics"]["map"], metrics["dense"]["metrics"]["map"]),
            "share": metrics["gflops"] / metrics["dense"]["gflops"],
            **{name: metrics[name] for name in ("gflops", "mparams")},
        }
        for number, metrics in facts.recovered.items()
        if metrics.get("dense")
    ]
    return sorted(rows, key=lambda row: -row["map"])


def _classes(facts: RunSummary, number: int | None) -> list[tuple[str, float, float]]:
    """Each class with the average precision of the dense and of the pruned detector, the worst loss first."""
    if number is None:
        return []
    pruned = facts.recovered[number]["per_class"]
    dense = facts.recovered[number]["dense"]["per_class"]
    found = [(name, dense[name], pruned[name]) for name in dense if name in pruned]
    return sorted(found, key=lambda row: row[2] - row[1])


def _samples(facts: RunSummary, number: int) -> tuple[Sequence[Sample], str | None]:
    return read_samples(RunDirectory(facts.run).recovered_folder(number))


def _listed(words: Sequence[str]) -> str:
    """Such as ``mAP, GFLOPs and latency``."""
    return " and ".join(filter(None, [", ".join(words[:-1]), words[-1]]))


def _axis(facts: RunSummary) -> Metric:
    """The cost that the front is first shown over: GFLOPs, or what was asked for in their place."""
    config = facts.config
    asked = [metric for metric in UNITS if getattr(config, f"budget_{metric}")]
    if not asked:
        asked = [metric for metric in UNITS if metric in config.objectives]
    return next((metric for metric in asked if metric in facts.result.dense), "gflops")


def _limits(facts: RunSummary, metric: Metric) -> list[float]:
    """The bounds that were asked for on a cost; they are known once the dense detector's is."""
    dense = facts.result.dense.get(metric)
    asked = getattr(facts.config, f"budget_{metric}") or ()
    texts = (asked,) if isinstance(asked, str) else asked
    return [parse_budget(text, metric, dense).limit for text in texts] if dense else []


def _embedded(content: Any) -> str:
    """JSON that may stand inside a script element; numbers that are none become null."""
    return json.dumps(_finite(content), separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _finite(content: Any) -> Any:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {key: _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    return content
