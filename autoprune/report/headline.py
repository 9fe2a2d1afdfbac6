"""The top of the page: the dense detector against the best pruned one, in a sentence and in figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from autoprune.progress import command_line, count_of
from autoprune.report.entries import kind_of, recovered_map
from autoprune.report.run_summary import RunSummary
from autoprune.report.tables import cost, points

COSTS = (
    ("gflops", "GFLOPs", "billions of multiply-adds for one image"),
    ("mparams", "parameters", "millions"),
    ("latency_ms", "latency", "milliseconds of the network for one image, median"),
)


@dataclass(frozen=True)
class Tile:
    """One figure of both detectors, as text: ``dense``, ``pruned``, and the ``change`` between them."""

    name: str
    unit: str
    dense: str
    pruned: str
    change: str


@dataclass(frozen=True)
class Headline:
    """The top of the page.

    Attributes:
        title: a few words.
        sentence: the result.
        details: where the policy comes from and how it was measured.
        tiles: mAP and costs, if there is a pruned detector to compare.
        trial: number of the trial that is shown.
        command: what to type next, if anything.
    """

    title: str
    sentence: str
    details: str
    tiles: tuple[Tile, ...] = ()
    trial: int | None = None
    command: str | None = None


def make_headline(summary: RunSummary) -> Headline:
    """Takes the best recovered trial, else the best one on the front, else says how far the search is."""
    number = _best_recovered(summary)
    if number is not None:
        return _recovered_headline(summary, number)
    if summary.result.best is not None and summary.result.dense:
        return _proxy_headline(summary)
    title = f"{summary.config.model}: nothing to compare yet"
    details = "This page shows what the run holds so far. The same search command resumes it:"
    command = command_line("search", "--config", summary.run / "config.yaml")
    if not summary.records:
        return Headline(title, "No trial has started.", details, command=command)
    started = f"{len(summary.records)} of {count_of(summary.config.trials, 'trial')} were started"
    return Headline(title, f"No trial is complete yet: {started}.", details, command=command)


def map_change(pruned: float, dense: float) -> float:
    """Difference of two mAPs in points, computed from the rounded values that the reader sees."""
    return round(float(points(pruned)) - float(points(dense)), 1)


def format_steps(count: int) -> str:
    """``1 step``, ``50 steps``."""
    return f"{count} step{'' if count == 1 else 's'}"


def proxy_training(count: int) -> str:
    """How long a proxy is trained before it is measured: ``after 50 steps of training``."""
    return f"after {format_steps(count)} of training" if count else "without training"


def _best_recovered(summary: RunSummary) -> int | None:
    """The recovered trial with the highest mAP; those on the front take precedence over the others."""
    comparable = [number for number, metrics in summary.recovered.items() if metrics.get("dense")]
    on_front = {point.trial for point in summary.result.front}
    return max(
        comparable,
        key=lambda number: (number in on_front, recovered_map(summary.recovered[number]) or 0.0),
        default=None,
    )


def _recovered_headline(summary: RunSummary, number: int) -> Headline:
    metrics = summary.recovered[number]
    pruned = {**metrics, "map": metrics["metrics"]["map"]}
    dense = {**metrics["dense"], "map": metrics["dense"]["metrics"]["map"]}
    for row in summary.latencies.get(number, ())[:1]:
        pruned["latency_ms"], dense["latency_ms"] = row["median_ms"], row.get("dense_ms")
    change = map_change(pruned["map"], dense["map"])
    comparison = "as much as"
    if change:
        comparison = f"{abs(change):.1f} points {'below' if change < 0 else 'above'}"
    sentence = (
        f"The pruned detector has {_gflops_fraction(pruned, dense)} and reaches {points(pruned['map'])} mAP, "
        f"{comparison} the dense one's {points(dense['map'])}."
    )
    details = (
        f"Trial {number} ({_origin_phrase(metrics.get('origin', 'sampler'))}), recovered for "
        f"{format_steps(metrics['settings']['steps'])}. Both are measured on {metrics['images']} validation "
        f"images{_input_size_phrase(metrics.get('input_size'))}."
    )
    command = command_line("export", summary.run / "recovered" / f"trial-{number:04d}", "--to", "detector")
    title = _title(summary, pruned, dense)
    return Headline(title, sentence, details, _tiles(pruned, dense), number, command)


def _proxy_headline(summary: RunSummary) -> Headline:
    best = summary.result.best
    assert best is not None
    pruned, dense = best.metrics, summary.result.dense
    sentence = (
        f"The best trial so far has {_gflops_fraction(pruned, dense)} and a proxy mAP of "
        f"{points(pruned['map'])}; the dense detector has {points(dense['map'])} on the same images."
    )
    details = (
        f"Trial {best.trial} ({_origin_phrase(best.origin)}). A proxy is measured "
        f"{proxy_training(summary.config.rungs[-1])}; full recovery regains more:"
    )
    command = command_line("recover", summary.run, "--trial", best.trial)
    tiles = _tiles(pruned, dense, "proxy mAP")
    return Headline(_title(summary, pruned, dense), sentence, details, tiles, best.trial, command)


def _title(summary: RunSummary, pruned: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    return f"{summary.config.model}, pruned to {pruned['gflops'] / dense['gflops']:.0%} of its GFLOPs"


def _gflops_fraction(pruned: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    """``50% of the GFLOPs (0.29 of 0.59)``."""
    fraction = pruned["gflops"] / dense["gflops"]
    return f"{fraction:.0%} of the GFLOPs ({cost(pruned['gflops'])} of {cost(dense['gflops'])})"


def _origin_phrase(origin: str) -> str:
    return "found by the search" if kind_of(origin) == "searched" else f"the warm start “{origin}”"


def _input_size_phrase(size: Any) -> str:
    return f"; costs are those of one image of {size[0]} x {size[1]} pixels" if size else ""


def _tiles(pruned: Mapping[str, Any], dense: Mapping[str, Any], score: str = "mAP") -> tuple[Tile, ...]:
    change = f"{map_change(pruned['map'], dense['map']):+.1f} points"
    tiles = [Tile(score, "at IoU 0.50:0.95, points", points(dense["map"]), points(pruned["map"]), change)]
    for name, shown, unit in COSTS:
        if pruned.get(name) is not None and dense.get(name):
            fraction = f"{pruned[name] / dense[name]:.0%} of dense"
            tiles.append(Tile(shown, unit, cost(dense[name]), cost(pruned[name]), fraction))
    return tuple(tiles)
