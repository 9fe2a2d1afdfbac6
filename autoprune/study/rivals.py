"""Whom a trial races against: the trials that it must beat to be promoted, or to be on the front."""

from collections.abc import Sequence

from autoprune.data.rivals import Rival
from autoprune.study.pareto import front
from autoprune.study.records import Record, directions, objective_values
from autoprune.study.rungs import is_promoted, score_of
from autoprune.study.trials import LedgerSettings

Rivals = tuple[Rival, ...]


def rivals(
    records: Sequence[Record], budget: float | None, settings: LedgerSettings, promoted: bool
) -> tuple[Rivals, ...]:
    """For each rung the trials that a new one must beat there; the evaluator chooses by what it costs.

    Args:
        records: all trials on the run's data.
        budget: GFLOPs that the new one is projected onto, if any.
        settings: how the search proceeds.
        promoted: whether it climbs all rungs whatever its mAP.
    """
    counted = [record for record in records if record.counts]
    top = settings.rungs - 1
    lower = [() if promoted else _to_be_promoted(counted, budget, settings, rung) for rung in range(top)]
    return (*lower, _to_be_on_front(counted, budget, settings, top))


def _to_be_promoted(
    records: Sequence[Record], budget: float | None, settings: LedgerSettings, rung: int
) -> Rivals:
    """The best trial of a budget that would not be promoted if it were the new one.

    Where other costs than a given budget count, mAP alone does not decide, and there is none.
    """
    names = settings.objectives
    if budget is None or set(names) - {"map", "gflops"}:
        return ()
    seen = [record for record in records if len(record.rungs) > rung]
    if score_of([record.rungs[rung] for record in seen]) != "map":
        return ()
    points = [objective_values(record.rungs[rung], record.budget, names) for record in seen]
    same = [record for record in seen if record.budget == budget]
    same.sort(key=lambda record: record.rungs[rung]["map"])
    low, high = 0, len(same)  # the worse ones are not promoted, the better ones are
    while low < high:
        middle = (low + high) // 2
        point = objective_values(same[middle].rungs[rung], budget, names)
        good = is_promoted(point, points, directions(names), settings.rung_keep)
        low, high = (low, middle) if good else (middle + 1, high)
    return next((_as_rivals([record], rung) for record in same[:low][::-1] if record.prefix_maps[rung]), ())


def _to_be_on_front(
    records: Sequence[Record], budget: float | None, settings: LedgerSettings, top: int
) -> Rivals:
    """The complete trials of a budget that no other beats: one that costs no more keeps a worse one off."""
    complete = [each for each in records if each.state == "complete" and each.budget == budget]
    complete = [each for each in complete if each.prefix_maps[top]]
    points = [[each.rungs[top][name] for name in settings.objectives] for each in complete]
    leaders = [complete[place] for place in front(points, directions(settings.objectives))]
    return _as_rivals(leaders, top, [name for name in settings.objectives if name != "map"])


def _as_rivals(records: Sequence[Record], rung: int, costs: Sequence[str] = ()) -> Rivals:
    return tuple(
        Rival(record.number, metrics["map"], {name: metrics[name] for name in costs}, maps)
        for record in records
        if (maps := record.prefix_maps[rung]) is not None and (metrics := record.rungs[rung])
    )
