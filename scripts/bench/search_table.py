"""The tables of `search.py`, from its folder of results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

# The methods of `search.py`, in the order of the table.
LABELS = {
    "uniform": "uniform",
    "tp-taylor": "torch-pruning, global Taylor",
    "tp-l2": "torch-pruning, global L2",
    "fastnas": "FastNAS's score",
    "fisher": "greedy Group Fisher",
    "random": "random search, our proxies",
    "ours": "autoprune",
    "own-proxies": "autoprune, default proxies",
}


def show(folder: Path, budgets: Sequence[str], steps: int) -> None:
    """Prints a table for each budget from the results that are there.

    Args:
        folder: `dense.json`, and one file for each method, budget and seed.
        budgets: as they were asked for.
        steps: of each recovery.
    """
    results = [result for result in read(folder) if "recovery" not in result]
    deviation = noise(results)
    dense = json.loads((folder / "dense.json").read_text(encoding="utf-8"))
    console = Console(width=120)
    for budget in budgets:
        here = averaged([result for result in results if result["budget"] == budget])
        ours = {result["seed"]: both(result) for result in here if result.get("method") == "ours"}
        table = Table(
            "method", "seeds", "recoveries", "GFLOPs", "val", "test", "mean ± deviation", "less ours",
            "search / recovery", title=f"{budget} of {dense['gflops']:.2f} GFLOPs, {steps} steps, mAP",
        )  # fmt: skip
        table.add_row(
            "dense", "", "", f"{dense['gflops']:.3f}", *points(dense), f"{100 * both(dense):.2f}", "", ""
        )
        for method in LABELS:
            if rows := [result for result in here if result.get("method") == method]:
                table.add_row(*line(method, rows, ours))
        console.print(table)
    if deviation is not None:
        console.print(f"One policy recovered again, with another seed: ± {100 * deviation:.2f} mAP.")


def read(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder but the dense detector's."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*-*.json"))]


def averaged(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One result for each policy: the means of all its recoveries, and in ``count`` how many those are."""
    merged = []
    for policy in recoveries_of(results):
        splits = [name for name in ("val", "test") if policy[0][name] is not None]
        means = {name: mean(result[name] for result in policy) for name in splits}
        merged.append({**policy[0], **means, "count": len(policy)})
    return merged


def noise(results: Sequence[Mapping[str, Any]]) -> float | None:
    """Standard deviation of the mAP between recoveries of one policy, pooled over all recovered again."""
    several = [[both(result) for result in policy] for policy in recoveries_of(results) if len(policy) > 1]
    if not several:
        return None
    squares = sum((len(policy) - 1) * stdev(policy) ** 2 for policy in several)
    return float(np.sqrt(squares / sum(len(policy) - 1 for policy in several)))


def recoveries_of(results: Sequence[Mapping[str, Any]]) -> list[list[Mapping[str, Any]]]:
    """The results of each policy together, the first recovery's first."""
    by_policy: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for result in sorted(results, key=lambda result: int(result.get("again", 0))):
        by_policy.setdefault((result["method"], result["budget"], result["seed"]), []).append(result)
    return list(by_policy.values())


def show_recoveries(folder: Path, budgets: Sequence[str], steps: int) -> None:
    """Prints what other recoveries make of the policies of `ours`, beside the plain one.

    Args:
        folder: as for `show`, and one file for each recovery, budget and seed.
        budgets: as they were asked for.
        steps: of each recovery.
    """
    results = [result for result in read(folder) if not result.get("again")]
    dense = both(json.loads((folder / "dense.json").read_text(encoding="utf-8")))
    console = Console(width=120)
    for budget in budgets:
        here = [result for result in results if result["budget"] == budget]
        plain = {result["seed"]: both(result) for result in here if result.get("method") == "ours"}
        table = Table(
            "recovery", "seeds", "val", "test", "mean ± deviation", "over plain", "over dense", "seconds",
            title=f"{budget}: the policies of autoprune, {steps} steps, mAP",
        )  # fmt: skip
        ways = dict.fromkeys(result["recovery"] for result in here if "recovery" in result)
        for way in [None, *ways]:
            rows = [
                result
                for result in here
                if (result.get("method") == "ours" if way is None else result.get("recovery") == way)
            ]
            if not rows:
                continue
            totals = [100 * both(row) for row in rows]
            more = [100 * (both(row) - plain[row["seed"]]) for row in rows if row["seed"] in plain]
            means = {name: mean(row[name] for row in rows) for name in ("val", "test") if rows[0][name]}
            table.add_row(
                way or "plain",
                str(len(rows)),
                *points({"val": None, "test": None, **means}),
                f"{mean(totals):.2f}" + (f" ± {stdev(totals):.2f}" if len(totals) > 1 else ""),
                spread(more) if way and more else "",
                f"{mean(totals) - 100 * dense:+.2f}",
                f"{mean(row['recovery_s'] for row in rows):.0f}",
            )
        if plain:
            console.print(table)


def line(method: str, rows: Sequence[Mapping[str, Any]], ours: Mapping[int, float]) -> list[str]:
    """One row of the table, from what `averaged` gives: means over the seeds."""
    means = {
        name: None if rows[0][name] is None else mean(row[name] for row in rows)
        for name in ("gflops", "val", "test")
    }
    totals = [100 * both(row) for row in rows]
    less = [100 * (both(row) - ours[row["seed"]]) for row in rows if row["seed"] in ours]
    work = mean(row["notes"].get("proxy_s", row["policy_s"]) / row["recovery_s"] for row in rows)
    return [
        LABELS[method],
        str(len(rows)),
        str(sum(row["count"] for row in rows)),
        f"{means['gflops']:.3f}",
        *points(means),
        f"{mean(totals):.2f}" + (f" ± {stdev(totals):.2f}" if len(totals) > 1 else ""),
        "" if method == "ours" or not less else spread(less),
        f"{work:.2f}",
    ]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, with a sign."""
    return f"{mean(values):+.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def both(result: Mapping[str, Any]) -> float:
    """Mean of the mAP on validation and test images; of the first alone where there are no others."""
    return float(np.mean([result[name] for name in ("val", "test") if result[name] is not None]))


def points(result: Mapping[str, Any]) -> list[str]:
    """MAP on validation and test images in points."""
    return ["-" if result[name] is None else f"{100 * result[name]:.2f}" for name in ("val", "test")]
