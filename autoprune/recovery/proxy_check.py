"""Whether a run's proxies can be trusted: some trials are recovered in full, and their ranks compared."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from autoprune.errors import RunError
from autoprune.files import write_text
from autoprune.progress import say
from autoprune.run.directory import RunDirectory
from autoprune.run.results import load_result
from autoprune.study.rungs import FALLBACK_METRICS
from autoprune.study.trials import Record

FILE = "proxies.json"
LEAST = 4  # trials, below which ranks say nothing
RESAMPLES = 1000
TRUSTED, ROUGH = 0.8, 0.5  # least rank correlation of proxies to trust, and to trust roughly


@dataclass(frozen=True)
class Estimate:
    """A rank correlation with its 95% bootstrap interval; ``None`` where all values are equal."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        """Such as ``0.86 (0.55 to 0.97)``."""
        if self.value is None or self.low is None or self.high is None:
            return "undefined" if self.value is None else f"{self.value:.2f}"
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


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
    """What `check_proxies` found.

    Attributes:
        budget_gflops: the budget of the compared trials, if they have one.
        steps: steps of the full recovery.
        trials: for each trial its number, origin, state, metrics at each rung and ``recovered_map``.
        agreements: for each rung, by mAP and by what else was measured there.
        verdict: one sentence in plain words.
    """

    budget_gflops: float | None
    steps: int
    trials: tuple[Mapping[str, Any], ...]
    agreements: tuple[Agreement, ...]
    verdict: str


def check_proxies(run: str | Path, count: int, **overrides: Any) -> ProxyCheck:
    """Recovers ``count`` trials of a run in full, and compares their ranks with those of the proxies.

    The trials lie spread over the range of the top rung's mAP; where too few are complete, trials that were
    stopped join them, and count at the rungs that they reached. In a run of several budgets they are those of
    the budget with the most complete trials, for mAP across budgets would agree whatever the proxies are
    worth. Trials that are recovered already are not trained again, so a call that was killed goes on.

    Args:
        run: the run directory.
        count: how many trials, at least 4.
        **overrides: fields of `Config` that say how to train, such as ``steps`` or ``device``.

    Raises:
        RunError: the directory is no run, or has too few trials.
    """
    from autoprune.recovery.recover import recover  # imports torchvision; who reads a check does without

    directory = RunDirectory(Path(run))
    result, config = load_result(directory.path), directory.config()
    chosen = choose_trials(result.records, max(count, LEAST))
    if len(chosen) < LEAST:
        raise RunError(
            f"{run} has {len(chosen)} trials to compare at one budget, {LEAST} are the least; raise --trials"
        )
    if len(chosen) < count:
        say(f"check of the proxies: {len(chosen)} trials, there are no more at one budget")
    found = recover(run, [record.number for record in chosen], **overrides)
    recovered = [item.map for item in found]
    steps = int(found[0].metrics["settings"]["steps"])
    agreements = compare(chosen, recovered, config.rungs)
    check = ProxyCheck(
        chosen[0].budget,
        steps,
        tuple(
            {
                "trial": record.number,
                "origin": record.origin,
                "state": record.state,
                "rungs": [dict(metrics) for metrics in record.rungs],
                "recovered_map": value,
            }
            for record, value in zip(chosen, recovered, strict=True)
        ),
        agreements,
        verdict(next(a for a in reversed(agreements) if a.score == "map")),
    )
    write_text(directory.path / FILE, json.dumps(asdict(check), indent=2) + "\n")
    return check


def load_check(run: Path) -> ProxyCheck | None:
    """The check that was made of a run, or ``None``."""
    if not (run / FILE).is_file():
        return None
    content = json.loads((run / FILE).read_text(encoding="utf-8"))
    agreements = [
        Agreement(
            **{**entry, "spearman": Estimate(**entry["spearman"]), "kendall": Estimate(**entry["kendall"])}
        )
        for entry in content["agreements"]
    ]
    return ProxyCheck(**{**content, "trials": tuple(content["trials"]), "agreements": tuple(agreements)})


def choose_trials(records: Sequence[Record], count: int) -> list[Record]:
    """Up to ``count`` trials of the budget that has the most complete ones, spread over their proxies."""
    usable = [record for record in records if record.counts and record.rungs and record.state != "failed"]
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
    """Places of up to ``count`` values that lie as evenly between the least and the largest as there are."""
    count = min(count, len(values))
    if count <= 0:
        return []
    left = list(range(len(values)))
    targets = np.linspace(min(values), max(values), count)
    found = []
    for target in [targets[0], *targets[:0:-1]]:  # the ends first
        left.sort(key=lambda place: (abs(values[place] - target), place))
        found.append(left.pop(0))
    return sorted(found)


def compare(
    records: Sequence[Record], recovered: Sequence[float], steps: Sequence[int]
) -> tuple[Agreement, ...]:
    """The agreement of each rung's scores with the recovered mAP, over the trials that have them.

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
                if rung < len(record.rungs) and math.isfinite(record.rungs[rung].get(score, math.nan))
            ]
            if len(pairs) >= 2:
                scores = np.array([pair[0] for pair in pairs]) * (1 if score == "map" else -1)
                values = np.array([pair[1] for pair in pairs])
                estimates = (estimate(which, scores, values) for which in (spearman, kendall))
                agreements.append(Agreement(rung, done, score, len(pairs), *estimates))
    return tuple(agreements)


Vector = np.ndarray[Any, np.dtype[np.float64]]


def spearman(first: Vector, second: Vector) -> Vector:
    """Spearman's rank correlation of each row [..., n]; NaN where one of the two is constant. Shape [...]."""
    # a value's rank, ties shared, is half of what its signs to all values add up to, plus (n + 1) / 2
    x, y = (_signs(values).sum(axis=-1) for values in (first, second))
    return _ratio((x * y).sum(axis=-1), (x * x).sum(axis=-1) * (y * y).sum(axis=-1))


def kendall(first: Vector, second: Vector) -> Vector:
    """Kendall's tau-b of each row [..., n]; NaN where one of the two is constant. Shape [...]."""
    x, y = _signs(first), _signs(second)
    pairs = (-2, -1)
    return _ratio((x * y).sum(axis=pairs), (x * x).sum(axis=pairs) * (y * y).sum(axis=pairs))


def _signs(values: Vector) -> Vector:
    """Whether each of n values is above (1), equal to (0) or below (-1) each other one, [..., n, n]."""
    return np.asarray(np.sign(values[..., :, None] - values[..., None, :]))


def _ratio(product: Vector, squares: Vector) -> Vector:
    undefined = np.full(np.shape(product), np.nan)
    return np.asarray(np.divide(product, np.sqrt(squares), out=undefined, where=squares > 0))


def estimate(which: Callable[[Vector, Vector], Vector], first: Vector, second: Vector) -> Estimate:
    """A statistic of pairs [n] and its percentile interval over resampled pairs (Efron, 1979)."""
    value = float(which(first, second))
    if not math.isfinite(value):
        return Estimate(None, None, None)
    rows = np.random.default_rng(0).integers(len(first), size=(RESAMPLES, len(first)))
    resampled = which(first[rows], second[rows])
    low, high = np.percentile(resampled[np.isfinite(resampled)], [2.5, 97.5])
    return Estimate(value, float(low), float(high))


def verdict(top: Agreement) -> str:
    """Whether the proxies can be trusted, in one sentence.

    Args:
        top: the agreement of the mAP at the highest rung.
    """
    rho = top.spearman
    if rho.value is None or rho.low is None:
        return "These proxies tell nothing apart: all of the compared trials have the same mAP."
    figures = f"ρ {rho.value:.2f}, 95% between {rho.low:.2f} and {rho.high:.2f}, {top.trials} trials"
    if rho.value >= TRUSTED and rho.low > 0:
        return (
            f"These proxies can be trusted: trials end up after recovery in nearly their order ({figures})."
        )
    if rho.value >= ROUGH and rho.low > 0:
        return (
            f"These proxies can be trusted roughly ({figures}): recover several of the best trials and "
            "take the one that ends up first."
        )
    return (
        f"These proxies cannot be trusted ({figures}): give them more steps (--rungs) or more images "
        "(--proxy-images)."
    )
