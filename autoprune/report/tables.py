"""Tables for people: mAP in points, costs beside their fraction of the dense detector's."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rich import box
from rich.table import Table
from rich.text import Text

Kind = Literal["dense", "sibling", "uniform", "one-shot", "searched"]
TRAINED: tuple[Kind, ...] = ("dense", "sibling")  # detectors that were trained as they are, not pruned


@dataclass(frozen=True)
class Entry:
    """One detector in a table or a plot.

    Attributes:
        name: for people, such as ``dense`` or ``trial 12``.
        kind: the dense detector, its smaller sibling, a warm start (uniform, or one-shot by importance), or
            a policy of the sampler.
        map: mAP as a fraction; of a trial, its proxy. ``None`` if not measured.
        gflops: billions of multiply-adds of one image.
        mparams: millions of parameters.
        latency_ms: median time of one image.
        spread_ms: its 10th and 90th percentile.
        recovered_map: mAP after full recovery, as a fraction.
        on_front: no other trial beats it in all objectives.
        like_best: it can't be told from the best of its budget by the images that both were measured on.
        origin: more precise than ``kind``, such as ``greedy taylor``; may be empty.
        pixels: shorter side that it resizes images to, where a search chose it.
        note: what qualifies its mAP, such as ``mean of 2`` or ``stopped at rung 0``; may be empty.
    """

    name: str
    kind: Kind
    map: float | None
    gflops: float
    mparams: float | None = None
    latency_ms: float | None = None
    spread_ms: tuple[float, float] | None = None
    recovered_map: float | None = None
    on_front: bool = False
    like_best: bool = False
    origin: str = ""
    pixels: int | None = None
    note: str = ""


def points(fraction: float | None) -> str:
    """MAP in points: 0.4627 is ``46.3``."""
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def cost(value: float | None) -> str:
    """A cost with about three digits: ``0.295``, ``7.39``, ``151.5``."""
    return "-" if value is None else f"{value:.{3 if value < 1 else 2 if value < 100 else 1}f}"


def comparison(entries: Sequence[Entry], title: str | None = None) -> Table:
    """One row per detector, each compared with the first, the dense one.

    Where some are recovered, there are two columns of mAP: that of pruned detectors before any training, and
    that of trained ones.

    Args:
        entries: the dense detector, then the others.
        title: what was compared, and on what.
    """
    dense = entries[0]
    table = _table(title)
    table.add_column("detector", overflow="fold")
    with_recovered = any(entry.recovered_map is not None for entry in entries)
    for heading in ("untrained\nmAP", "trained\nmAP") if with_recovered else ("mAP",):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    for heading in ("GFLOPs", "M params"):
        table.add_column(heading, justify="right", no_wrap=True)
    if with_latency := any(entry.latency_ms is not None for entry in entries):
        with_spread = any(entry.spread_ms is not None for entry in entries)
        table.add_column("ms (p10-p90)" if with_spread else "ms", justify="right", no_wrap=True)
    for entry in entries:
        reference = None if entry is dense else dense
        cells = [
            entry.name,
            *(_map_cell(value, reference) for value in (_two_maps(entry) if with_recovered else [entry.map])),
            _cost_cell(entry.gflops, reference.gflops if reference else None),
            _cost_cell(entry.mparams, reference.mparams if reference else None),
        ]
        table.add_row(*cells, *([_latency_cell(entry)] if with_latency else []))
    return table


def front(entries: Sequence[Entry], dense: Entry, title: str | None = None) -> Table:
    """The front and the detectors to compare it with, cheapest first, the dense detector last.

    Args:
        entries: trials, and the smaller sibling if there is one; those on the front are marked.
        dense: the detector that was pruned.
        title: the run and its budget.
    """
    table = _table(title)
    table.add_column("trial", overflow="fold")
    table.add_column("from")
    table.add_column("front", justify="center")
    if with_sizes := any(entry.pixels is not None for entry in entries):
        table.add_column(Text("input\npx"), justify="right", no_wrap=True)
    for heading in ("proxy\nmAP", "GFLOPs", "M\nparams"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    rows = [*sorted(entries, key=lambda entry: (entry.gflops, -(entry.map or 0.0))), dense]
    if with_latency := any(entry.latency_ms is not None for entry in rows):
        table.add_column("ms", justify="right")
    if with_recovered := any(entry.recovered_map is not None for entry in rows):
        table.add_column(Text("recovered\nmAP"), justify="right")
    if with_notes := any(entry.note for entry in rows):
        table.add_column("note")
    for entry in rows:
        reference = None if entry is dense else dense
        table.add_row(
            entry.name,
            entry.origin or entry.kind,
            "●" * entry.on_front + "≈" * entry.like_best,
            *(["-" if entry.pixels is None else str(entry.pixels)] if with_sizes else []),
            points(entry.map),
            _cost_cell(entry.gflops, reference.gflops if reference else None),
            _cost_cell(entry.mparams, None),
            *(["-" if entry.latency_ms is None else f"{entry.latency_ms:.1f}"] if with_latency else []),
            *([points(entry.recovered_map)] if with_recovered else []),
            *([entry.note] if with_notes else []),
        )
    return table


def _table(title: str | None) -> Table:
    return Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", pad_edge=False, padding=(0, 2, 0, 0))


def _two_maps(entry: Entry) -> list[float | None]:
    """MAP without training and with it; a detector that was not pruned only has the second."""
    return [None, entry.map] if entry.kind in TRAINED else [entry.map, entry.recovered_map]


def _map_cell(value: float | None, reference: Entry | None) -> str:
    if value is None or reference is None or reference.map is None:
        return points(value)
    return f"{points(value)} ({100 * (value - reference.map):+.1f})"


def _cost_cell(value: float | None, reference: float | None) -> str:
    fraction = "" if value is None or not reference else f" ({value / reference:.0%})"
    return cost(value) + fraction


def _latency_cell(entry: Entry) -> str:
    if entry.latency_ms is None:
        return "-"
    spread = "" if entry.spread_ms is None else " ({:.1f}-{:.1f})".format(*entry.spread_ms)
    return f"{entry.latency_ms:.1f}{spread}"
