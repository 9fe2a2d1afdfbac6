"""Whether a trial is promoted from one rung to the next; works with several objectives.

Asynchronous successive halving (Li et al., A System for Massively Parallel Hyperparameter Tuning,
MLSys 2020) with the rank of NSGA-II in place of a single score.
"""

import math
from collections.abc import Mapping, Sequence

from autoprune.data.rivals import RACED
from autoprune.study.pareto import Direction, order
from autoprune.study.records import Record

ALWAYS_FIRST = 3  # trials that are promoted whatever their values: there is little to compare with
NO_MAP = 0.02  # below it a mAP is a handful of lucky boxes
# What ranks trials whose mAP does not; less is better. At rung 0 of the demo's detector at 25% of its
# GFLOPs, where most mAPs are near zero, Spearman's correlation with the mAP after recovery was 0.83 for the
# loss and 0.43 for the features' distance (12 trials of one search).
FALLBACK_METRICS = ("loss", "features")


def first_systematic_failure(records: Sequence[Record], least: int) -> Record | None:
    """The first trial that failed at a rung where at least ``least`` trials failed and none came through."""
    reached = max((len(record.rungs) for record in records), default=0)
    failed = [record for record in records if record.state == "failed" and len(record.rungs) == reached]
    return failed[0] if len(failed) >= max(least, 1) else None


def score_of(seen: Sequence[Mapping[str, float]]) -> str | None:
    """Which metric the trials of a rung are ranked by.

    Args:
        seen: metrics of all trials that reached the rung.

    Returns:
        ``"map"`` where at least half of the trials have a mAP of 0.02 or more; else the first of
        `FALLBACK_METRICS` that all trials have, but for those that lost a race, of which a mAP alone is
        estimated; ``None`` where there is none: nothing tells them apart.
    """
    if 2 * sum(metrics["map"] < NO_MAP for metrics in seen) <= len(seen):
        return "map"
    measured = [metrics for metrics in seen if RACED not in metrics]
    known = [
        name
        for name in FALLBACK_METRICS
        if measured and all(math.isfinite(metrics.get(name, math.nan)) for metrics in measured)
    ]
    return known[0] if known else None


def is_promoted(
    point: Sequence[float],
    others: Sequence[Sequence[float]],
    directions: Sequence[Direction],
    keep: float,
) -> bool:
    """Decides at a rung whether the trial with values ``point`` is promoted.

    Args:
        point: the trial's M objective values at this rung.
        others: [N, M] values of the trials that reached this rung before it.
        directions: M directions.
        keep: fraction of the trials that is promoted, 0 < keep <= 1.

    Returns:
        True where ``point`` is among the best ``ceil(keep * (N + 1))`` by non-dominated rank, then
        crowding. Of equal points the earlier one is the better one. The first `ALWAYS_FIRST` trials
        are promoted whatever their values.

    Raises:
        ValueError: ``keep`` is out of range.
    """
    if not 0 < keep <= 1:
        raise ValueError(f"keep must be above 0 and at most 1, not {keep}")
    if len(others) < ALWAYS_FIRST:
        return True
    seats = math.ceil(keep * (len(others) + 1) - 1e-9)
    return len(others) in order([*others, point], directions)[:seats]
