"""The tables of `search.py`, from its folder of results."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from search_methods import METHODS

from autoprune.data.standard_error import paired_error

SPLITS = ("val", "test")


def show(folder: Path, budgets: Sequence[str], steps: int, reference: str) -> None:
    """Prints a table for each budget from the results that are there.

    What a policy cost is in multiples of one recovery, the median of its budget. Differences are those to one
    method at the same seeds, with their paired standard error over images: that of the mean over the seeds.

    Args:
        folder: `dense.json`, and one file for each method, budget and seed.
        budgets: as they were asked for.
        steps: of each recovery.
        reference: the method that others are compared with.
    """
    results = [result for result in read(folder) if "recovery" not in result]
    deviation = noise(results)
    dense = json.loads((folder / "dense.json").read_text(encoding="utf-8"))
    console = Console(width=120)
    for budget in budgets:
        here = averaged([result for result in results if result["budget"] == budget])
        recovery_s = median([result["recovery_s"] for result in here] or [1.0])
        compared = {result["seed"]: result for result in here if result["method"] == reference}
        table = Table(
            "method", "seeds", "GFLOPs", "val", "test", "mean ± deviation",
            f"less {reference}\n± over images", "untrained", "cost",
            title=f"{budget} of {dense['gflops']:.2f} GFLOPs, {steps} steps, mAP",
        )  # fmt: skip
        table.add_row(
            "dense", "", f"{dense['gflops']:.3f}", *points(dense), f"{100 * both(dense):.2f}", "", "", ""
        )
        for name, method in METHODS.items():
            if rows := [result for result in here if result["method"] == name]:
                others = {} if name == reference else compared
                table.add_row(method.label, *line(rows, others, recovery_s))
        console.print(table)
    console.print("cost: seconds to find the policy, in recoveries; untrained: val mAP before the recovery")
    if deviation is not None:
        console.print(f"One policy recovered again, with another seed: ± {100 * deviation:.2f} mAP.")


def read(folder: Path) -> list[dict[str, Any]]:
    """All results of a folder but the dense detector's."""
    return [json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*-*.json"))]


def averaged(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One result for each policy: the means of all its recoveries."""
    merged = []
    for policy in recoveries_of(results):
        splits = [name for name in SPLITS if policy[0][name] is not None]
        means = {name: mean(result[name] for result in policy) for name in splits}
        maps = {name: np.mean([result["bootstrap"][name] for result in policy], axis=0) for name in splits}
        merged.append({**policy[0], **means, "bootstrap": maps})
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
            means = {name: mean(row[name] for row in rows) for name in SPLITS if rows[0][name]}
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


def line(
    rows: Sequence[Mapping[str, Any]], compared: Mapping[int, Mapping[str, Any]], recovery_s: float
) -> list[str]:
    """One row of the table but its label: means over the seeds.

    Args:
        rows: a method's results, of `averaged`.
        compared: those of the reference, by seed.
        recovery_s: seconds of one recovery.
    """
    means = {
        name: None if rows[0][name] is None else mean(row[name] for row in rows)
        for name in ("gflops", "untrained", *SPLITS)
    }
    totals = [100 * both(row) for row in rows]
    pairs = [(row, compared[row["seed"]]) for row in rows if row["seed"] in compared]
    return [
        str(len(rows)),
        f"{means['gflops']:.3f}",
        *points(means),
        f"{mean(totals):.2f}" + (f" ± {stdev(totals):.2f}" if len(totals) > 1 else ""),
        difference(pairs) if pairs else "",
        f"{100 * (means['untrained'] or 0):.1f}",
        f"{mean(row['policy_s'] for row in rows) / recovery_s:.2f}",
    ]


def difference(pairs: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]]) -> str:
    """Mean difference of pairs of results in points, and its standard error over images."""
    errors = []
    for name in SPLITS:
        if pairs[0][0][name] is not None:
            first, second = (np.mean([pair[n]["bootstrap"][name] for pair in pairs], axis=0) for n in (0, 1))
            errors.append(paired_error(first.tolist(), second.tolist()))
    error = float(np.hypot.reduce(errors)) / len(errors)
    return f"{100 * mean(both(one) - both(other) for one, other in pairs):+.2f} ± {100 * error:.2f}"


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation, with a sign."""
    return f"{mean(values):+.2f}" + (f" ± {stdev(values):.2f}" if len(values) > 1 else "")


def both(result: Mapping[str, Any]) -> float:
    """Mean of the mAP on validation and test images; of the first alone where there are no others."""
    return float(np.mean([result[name] for name in SPLITS if result[name] is not None]))


def points(result: Mapping[str, Any]) -> list[str]:
    """MAP on validation and test images in points."""
    return ["-" if result[name] is None else f"{100 * result[name]:.2f}" for name in SPLITS]
