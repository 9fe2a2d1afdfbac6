"""The table of `siblings.py`, from its folder of results."""

import json
from collections.abc import Mapping
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from rich.console import Console
from rich.table import Table
from search_table import both, difference
from siblings_rows import ROWS

Results = Mapping[int, Mapping[str, Any]]
"""Those of one row, by seed."""


def show(folder: Path, steps: int) -> None:
    """Prints the table of a pair.

    Differences are those of the means of val and test mAP to the smaller sibling, and of autoprune to each
    row, over the seeds that both have: ± over seeds is the standard error of the mean difference, ± over
    images that by the bootstrap.

    Args:
        folder: one folder for each seed.
        steps: of all rows.
    """
    rows = {name: read(folder, name) for name in ROWS}
    scored = {name: {s: r for s, r in row.items() if "failed" not in r} for name, row in rows.items()}
    table = Table(
        "detector", "fraction of\nGFLOPs", "less the smaller\n± seeds, ± images",
        "autoprune less it\n± seeds, ± images", "mAP", "val", "test", "GFLOPs", "M param.", "seeds",
        title=f"{folder.name}: {steps} steps of training each",
    )  # fmt: skip
    larger = next(iter(scored["larger"].values()), None)
    for name, row in ROWS.items():
        if not (results := scored[name]):
            continue
        means = {key: mean(r[key] for r in results.values()) for key in ("val", "gflops", "mparams")}
        tests = [r["test"] for r in results.values() if r["test"] is not None]
        table.add_row(
            row.label,
            "" if larger is None else f"{means['gflops'] / larger['gflops']:.3f}",
            compared(results, scored["smaller"]) if name != "smaller" else "",
            compared(scored["autoprune"], results) if name != "autoprune" else "",
            f"{100 * mean(both(r) for r in results.values()):.2f}",
            f"{100 * means['val']:.2f}",
            f"{100 * mean(tests):.2f}" if tests else "-",
            f"{means['gflops']:.3f}",
            f"{means['mparams']:.2f}",
            str(len(results)),
        )
    console = Console(width=150)
    console.print(table)
    for name in ROWS:
        for reason in {result["failed"] for result in rows[name].values() if "failed" in result}:
            console.print(f"{ROWS[name].label}: {reason}", markup=False)
    peers = [result["notes"].get("failed") for result in scored["tp-taylor-plain"].values()]
    if any(peers):
        console.print(f"torch-pruning's ranking is repeated on autoprune's graph: {peers[0]}", markup=False)
    searched = [result["notes"]["search_steps"] for result in scored["autoprune"].values()]
    if searched:
        console.print(f"training steps of the searches' proxies, on top: {mean(searched):.0f} each")
    for file in sorted((folder / "rates").glob("*.json")):
        console.print(
            f"rate {file.stem}: val {100 * json.loads(file.read_text(encoding='utf-8'))['val']:.1f}"
        )


def read(folder: Path, name: str) -> dict[int, dict[str, Any]]:
    """The results of a row, by seed."""
    files = {int(each.name.removeprefix("seed-")): each / "rows" / f"{name}.json" for each in seeds(folder)}
    return {n: json.loads(file.read_text(encoding="utf-8")) for n, file in files.items() if file.exists()}


def seeds(folder: Path) -> list[Path]:
    """Folders of the seeds."""
    return sorted(folder.glob("seed-*"))


def compared(results: Results, others: Results) -> str:
    """Mean difference in points, with its standard errors over seeds and over images."""
    pairs = [(results[seed], others[seed]) for seed in results if seed in others]
    if not pairs:
        return ""
    points = [100 * (both(one) - both(other)) for one, other in pairs]
    value, _, images = difference(pairs).partition(" ± ")
    over_seeds = f"± {stdev(points) / len(points) ** 0.5:.2f}" if len(points) > 1 else "± -"
    return f"{value} {over_seeds}, ± {images}"
