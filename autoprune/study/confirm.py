"""Which trials to measure again before one is called the best.

The best of many measurements is partly the luckiest (the winner's curse): in three searches of twelve trials,
the winner's mAP fell by up to 1.3 points when it was recovered with another seed. So a trial leads on the
mean of two measurements or not at all. As in racing (Maron and Moore, "Hoeffding Races", NIPS 1993), only
those that could still be the best are measured again.
"""

from collections.abc import Sequence

from autoprune.study.pareto import front
from autoprune.study.storage import directions
from autoprune.study.trials import Record


def next_to_confirm(records: Sequence[Record], objectives: Sequence[str], most: int) -> Record | None:
    """The leader to measure again: of those on the front with one measurement, the one with the highest mAP.

    At a budget the front has one point, for candidates lie within a per cent below it by chance.

    Args:
        records: all trials of the study; none that counts is running.
        objectives: what the front is of.
        most: repetitions, those already begun with them.
    """
    begun = {record.repeat_of for record in records if record.repeat_of is not None}
    if len(begun) >= most:
        return None
    done = [record for record in records if record.counts and record.state == "complete"]
    leaders = [done[place] for place in front([_point(r, objectives) for r in done], directions(objectives))]
    fresh = [record for record in leaders if record.number not in begun]
    return max(fresh, key=lambda record: (record.metrics["map"], -record.number), default=None)


def _point(record: Record, objectives: Sequence[str]) -> list[float]:
    target = {} if record.budget is None else {"gflops": record.budget}
    known = {**record.metrics, **target}
    return [known[name] for name in objectives]
