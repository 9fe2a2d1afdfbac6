"""Whether a run's proxies can be trusted: some trials are recovered in full, and their ranks compared."""

import json
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter

from autoprune.data.rivals import RACED
from autoprune.errors import RunError
from autoprune.files import write_text
from autoprune.progress import say
from autoprune.recovery.rank_correlation import Estimate, estimate, kendall, spearman
from autoprune.run.directory import RunDirectory
from autoprune.run.documents import Document
from autoprune.run.results import load_result
from autoprune.study.records import Record
from autoprune.study.rungs import FALLBACK_METRICS
from autoprune.study.trials import Metrics

LEAST = 4  # trials; ranks of fewer mean nothing
TRUSTED, ROUGH = 0.8, 0.5  # least rank correlation of proxies to trust, and to trust roughly


@dataclass(frozen=True)
class Agreement:
    """How one score at one rung ranks trials, against their mAP after recovery.

    Attributes:
        rung: 0, 1, …
        steps: recovery steps that a trial has had at this rung.
        score: ``map``, or another metric, the less the better.
        trials: how many were compared.
        spearman: Spearman's rank correlation.
        kendall: Kendall's tau-b.
    """

    rung: int
    steps: int
    score: str
    trials: int
    spearman: Estimate
    kendall: Estimate


@dataclass(frozen=True)
class ProxyCheck:
    """The result of `check_proxies`, as `proxies.json` holds it.

    Attributes:
        budget_gflops: the budget of the compared trials, if they have one.
        steps: steps of the full recovery.
        trials: for each trial its number, origin, state, metrics at each rung and ``recovered_map``.
        agreements: for each rung, by mAP and by the other metrics that rank trials there.
        verdict: one sentence in plain words.
    """

    budget_gflops: float | None
    steps: int
    trials: tuple[Mapping[str, Any], ...]
    agreements: tuple[Agreement, ...]
    verdict: str


CHECK = Document(TypeAdapter(ProxyCheck), "delete the file, and search again with --check-proxies")


def check_proxies(run: str | Path, count: int, **overrides: Any) -> ProxyCheck:
    """Recovers ``count`` trials of a run in full, and compares their ranks with those of the proxies.

    The trials are spread over the range of the top rung's mAP; where too few are complete, stopped trials
    are added, and count at the rungs that they reached. In a run of several budgets all are of the budget
    with the most complete trials, because mAP across budgets would agree however poor the proxies are.
    Trials that are recovered already are not trained again, so a call that was killed can be repeated.

    Args:
        run: the run directory.
        count: how many trials, at least 4.
        **overrides: fields of `Config` that say how to train, such as ``steps`` or ``device``.

    Raises:
        RunError: it is not a run directory, or has too few trials.
    """
    from autoprune.recovery.recover import recover  # imports torchvision, which reading a check does not need

    directory = RunDirectory(Path(run))
    result, config = load_result(directory.path), directory.config()
    chosen = choose_trials(result.records, max(count, LEAST))
    if len(chosen) < LEAST:
        raise RunError(
            f"{run} has {len(chosen)} trials to compare at one budget, {LEAST} are the least; raise --trials"
        )
    if len(chosen) < count:
        say(f"check of the proxies: {len(chosen)} trials, there are no more at one budget")
    recoveries = recover(run, [record.number for record in chosen], **overrides)
    maps = [recovered.map for recovered in recoveries]
    agreements = compare(chosen, maps, config.rungs)
    check = ProxyCheck(
        budget_gflops=chosen[0].budget,
        steps=int(recoveries[0].metrics["settings"]["steps"]),
        trials=tuple(_entry(record, value) for record, value in zip(chosen, maps, strict=True)),
        agreements=agreements,
        verdict=verdict(next(a for a in reversed(agreements) if a.score == "map")),
    )
    write_text(directory.proxy_check_file, json.dumps(asdict(check), indent=2) + "\n")
    return check


def load_check(run: Path, set_aside: Collection[int] = ()) -> ProxyCheck | None:
    """The check that was made of a run, or ``None``; also where it was made of trials that were set aside.

    Raises:
        RunError: its file is damaged.
    """
    file = RunDirectory(run).proxy_check_file
    if not file.is_file():
        return None
    check = CHECK.shape.validate_python(CHECK.read(file))
    return None if any(trial.get("trial") in set_aside for trial in check.trials) else check


def choose_trials(records: Sequence[Record], count: int) -> list[Record]:
    """Up to ``count`` trials of the budget that has the most complete ones, spread over their proxies.

    Those that lost a race at the lowest rung have no proxy to compare.
    """
    usable = [
        record
        for record in records
        if record.counts
        and record.state != "failed"
        and record.rungs
        and _is_measured(record.rungs[0], "map")
    ]
    complete = [record for record in usable if record.state == "complete"]
    budgets = [record.budget for record in complete]
    if not budgets:
        return []
    budget = max(budgets, key=budgets.count)
    complete = [record for record in complete if record.budget == budget]
    stopped = [record for record in usable if record.state == "stopped" and record.budget == budget]
    chosen = [complete[place] for place in spread([r.metrics["map"] for r in complete], count)]
    more = spread([r.metrics["map"] for r in stopped], count - len(chosen))
    return sorted([*chosen, *(stopped[place] for place in more)], key=lambda record: record.number)


def spread(values: Sequence[float], count: int) -> list[int]:
    """Indices, rising, of up to ``count`` values, spread as evenly as possible over the range of all."""
    count = min(count, len(values))
    if count <= 0:
        return []
    remaining = list(range(len(values)))
    targets = np.linspace(min(values), max(values), count)
    chosen = []
    for target in [targets[0], *targets[:0:-1]]:  # the ends first
        remaining.sort(key=lambda place: (abs(values[place] - target), place))
        chosen.append(remaining.pop(0))
    return sorted(chosen)


def compare(
    records: Sequence[Record], recovered: Sequence[float], steps: Sequence[int]
) -> tuple[Agreement, ...]:
    """The agreement of each rung's scores with the recovered mAP, over the trials that have them.

    A trial that lost a race at a rung has none there: its mAP is an estimate from a part of the images.

    Args:
        records: N trials.
        recovered: [N], their mAP after recovery.
        steps: recovery steps at each rung.
    """
    agreements = []
    for rung, done in enumerate(steps):
        for score in ("map", *FALLBACK_METRICS):
            pairs = [
                (record.rungs[rung][score], value)
                for record, value in zip(records, recovered, strict=True)
                if rung < len(record.rungs) and _is_measured(record.rungs[rung], score)
            ]
            if len(pairs) >= 2:
                scores = np.array([pair[0] for pair in pairs]) * (1 if score == "map" else -1)
                values = np.array([pair[1] for pair in pairs])
                estimates = (estimate(statistic, scores, values) for statistic in (spearman, kendall))
                agreements.append(Agreement(rung, done, score, len(pairs), *estimates))
    return tuple(agreements)


def _is_measured(metrics: Metrics, score: str) -> bool:
    return RACED not in metrics and math.isfinite(metrics.get(score, math.nan))


def verdict(top: Agreement) -> str:
    """Whether the proxies can be trusted, in one sentence.

    Args:
        top: the agreement of the mAP at the highest rung.
    """
    rho = top.spearman
    if rho.value is None or rho.low is None:
        return "These proxies do not distinguish the trials: all of the compared ones have the same mAP."
    figures = f"ρ {rho.value:.2f}, 95% between {rho.low:.2f} and {rho.high:.2f}, {top.trials} trials"
    if rho.value >= TRUSTED and rho.low > 0:
        return f"These proxies can be trusted: recovery changes the order of the trials little ({figures})."
    if rho.value >= ROUGH and rho.low > 0:
        return (
            f"These proxies can be trusted roughly ({figures}): recover several of the best trials and "
            "choose by their mAP after recovery."
        )
    return (
        f"These proxies cannot be trusted ({figures}): give them more steps (--rungs) or more images "
        "(--proxy-images)."
    )


def _entry(record: Record, recovered_map: float) -> dict[str, Any]:
    """A trial as `proxies.json` lists it."""
    return {
        "trial": record.number,
        "origin": record.origin,
        "state": record.state,
        "rungs": [dict(metrics) for metrics in record.rungs],
        "recovered_map": recovered_map,
    }
