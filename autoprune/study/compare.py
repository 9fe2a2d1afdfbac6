"""Which trials can't be told from the best: by the paired error on the images that both were measured on."""

import math
from collections.abc import Sequence

import numpy as np

from autoprune.data.rivals import compare, decode_maps
from autoprune.study.records import Record

ERRORS = 2.0  # a difference of two standard errors is one in 95% of such comparisons


def paired(first: Record, second: Record) -> float | None:
    """Standard error of the difference of two trials' mAP on all images; ``None`` where it was not kept."""
    texts = [record.prefix_maps[-1] if record.prefix_maps else None for record in (first, second)]
    rungs = len(first.rungs) == len(second.rungs)
    if not rungs or texts[0] is None or texts[1] is None or first.other_data != second.other_data:
        return None
    ours, theirs = (decode_maps(text) for text in texts if text is not None)
    if len(ours) != len(theirs):  # resamples of one version are not those of another that looked elsewhere
        return None
    error = compare(ours[-1], theirs[-1])[1]
    return error if math.isfinite(error) else None


def like_the_best(records: Sequence[Record]) -> frozenset[int]:
    """Numbers of the complete trials that can't be told from the best of their budget, it not among them."""
    complete = [record for record in records if record.counts and record.state == "complete"]
    result: set[int] = set()
    for budget in {record.budget for record in complete}:
        here = [record for record in complete if record.budget == budget]
        best = best_of(here)
        result |= {each.number for each in here if each is not best and not is_worse(each, best)}
    return frozenset(result)


def best_of(records: Sequence[Record]) -> Record:
    """The trial of the highest mAP, the first of equal ones."""
    return max(records, key=lambda record: (record.metrics["map"], -record.number))


def was_compared(record: Record) -> bool:
    """Whether a trial kept what others are compared with it by."""
    return paired(record, record) is not None


def is_worse(record: Record, best: Record, more: float = 0.0) -> bool:
    """Whether a trial is worse than another one beyond the error; also where the error was not kept.

    Args:
        record: the trial.
        best: the other one.
        more: another standard error of the difference, beside that of the images.
    """
    error = paired(record, best)
    difference = best.metrics["map"] - record.metrics["map"]
    return error is None or difference > ERRORS * float(np.hypot(error, more))
