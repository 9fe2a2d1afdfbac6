"""What happened, first of all: the dense detector and the best pruned one, in a sentence and in figures."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

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
    """One figure of both detectors: ``before`` of the dense one, ``after`` of the pruned one."""

    name: str
    unit: str
    before: str
    after: str
    change: str


@dataclass(frozen=True)
class Headline:
    """The top of the page.

    Attributes:
        title: a few words.
        sentence: what happened.
        details: how it was found and measured.
        tiles: mAP and costs, where there is a pruned detector to compare.
        trial: number of the trial that it is about.
        command: what to type next, if anything.
    """

    title: str
    sentence: str
    details: str
    tiles: tuple[Tile, ...] = ()
    trial: int | None = None
    command: str | None = None


def headline(facts: RunSummary) -> Headline:
    """Picks the best recovered trial, else the best on the front, else says how far the search is."""
    number = _best_recovered(facts)
    if number is not None:
        return _of_recovered(facts, number)
    if facts.result.best is not None and facts.result.dense:
        return _of_proxy(facts)
    title = f"{facts.config.model}: nothing to compare yet"
    running, records = f"{len(facts.records)} of {facts.config.trials} trials", facts.records
    details = "This page shows what there is. The same search command goes on from here:"
    command = f"autoprune search --config {facts.run}/config.yaml"
    if not records:
        return Headline(title, "No trial has been started.", details, command=command)
    return Headline(title, f"No trial has come through: {running} were started.", details, command=command)


def difference(pruned: float, dense: float) -> float:
    """Of two mAPs in points, as rounded, so that a reader who subtracts what is shown finds the same."""
    return round(float(points(pruned)) - float(points(dense)), 1)


def steps(count: int) -> str:
    """A number of steps, as people say it."""
    return f"{count} step{'' if count == 1 else 's'}"


def after(count: int) -> str:
    """How long a proxy is trained before it is measured."""
    return f"after {steps(count)} of training" if count else "without training"


def _best_recovered(facts: RunSummary) -> int | None:
    """The recovered trial with the highest mAP; one on the front before those that were taken to compare."""
    comparable = [number for number, metrics in facts.recovered.items() if metrics.get("dense")]
    front = {point.trial for point in facts.result.front}
    return max(
        comparable,
        key=lambda number: (number in front, recovered_map(facts.recovered[number]) or 0.0),
        default=None,
    )


def _of_recovered(facts: RunSummary, number: int) -> Headline:
    metrics = facts.recovered[number]
    pruned = {**metrics, "map": metrics["metrics"]["map"]}
    dense = {**metrics["dense"], "map": metrics["dense"]["metrics"]["map"]}
    for row in facts.latencies.get(number, ())[:1]:
        pruned["latency_ms"], dense["latency_ms"] = row["median_ms"], row.get("dense_ms")
    change = difference(pruned["map"], dense["map"])
    than = "as much as"
    if change:
        than = f"{abs(change):.1f} points {'below' if change < 0 else 'above'}"
    sentence = (
        f"The pruned detector does {_share(pruned, dense)} and reaches {points(pruned['map'])} mAP, {than} "
        f"the dense one's {points(dense['map'])}."
    )
    details = (
        f"Trial {number} ({_found(metrics.get('origin', 'sampler'))}), trained back for "
        f"{steps(metrics['settings']['steps'])}. Both are measured on {metrics['images']} validation images"
        f"{_at(metrics.get('input_size'))}."
    )
    command = f"autoprune export {facts.run / 'recovered' / f'trial-{number:04d}'} --to detector"
    return Headline(_title(facts, pruned, dense), sentence, details, _tiles(pruned, dense), number, command)


def _of_proxy(facts: RunSummary) -> Headline:
    best = facts.result.best
    assert best is not None
    pruned, dense = best.metrics, facts.result.dense
    sentence = (
        f"The best trial so far does {_share(pruned, dense)} and has a proxy mAP of {points(pruned['map'])}; "
        f"the dense detector has {points(dense['map'])} on the same images."
    )
    details = (
        f"Trial {best.trial} ({_found(best.origin)}). A proxy is measured {after(facts.config.rungs[-1])}; "
        "full recovery brings back more:"
    )
    command = f"autoprune recover {facts.run} --trial {best.trial}"
    tiles = _tiles(pruned, dense, "proxy mAP")
    return Headline(_title(facts, pruned, dense), sentence, details, tiles, best.trial, command)


def _title(facts: RunSummary, pruned: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    return f"{facts.config.model}, pruned to {pruned['gflops'] / dense['gflops']:.0%} of its GFLOPs"


def _share(pruned: Mapping[str, Any], dense: Mapping[str, Any]) -> str:
    """Such as ``50% of the dense one's work (0.29 of 0.59 GFLOPs)``."""
    fraction = pruned["gflops"] / dense["gflops"]
    return f"{fraction:.0%} of the work ({cost(pruned['gflops'])} of {cost(dense['gflops'])} GFLOPs)"


def _found(origin: str) -> str:
    return "found by the search" if kind_of(origin) == "searched" else f"the warm start “{origin}”"


def _at(size: Any) -> str:
    return f"; costs count an image of {size[0]} x {size[1]} pixels" if size else ""


def _tiles(pruned: Mapping[str, Any], dense: Mapping[str, Any], score: str = "mAP") -> tuple[Tile, ...]:
    change = f"{difference(pruned['map'], dense['map']):+.1f} points"
    tiles = [Tile(score, "at IoU 0.50:0.95, points", points(dense["map"]), points(pruned["map"]), change)]
    for name, shown, unit in COSTS:
        if pruned.get(name) is not None and dense.get(name):
            fraction = f"{pruned[name] / dense[name]:.0%} of the dense one's"
            tiles.append(Tile(shown, unit, cost(dense[name]), cost(pruned[name]), fraction))
    return tuple(tiles)
