"""Which trials to re-evaluate before one is called the best.

The best of many measurements is partly the luckiest (the winner's curse): in three searches of twelve trials,
the winner's mAP fell by up to 1.3 points when it was recovered with another seed. So a trial leads on the
mean of two evaluations or not at all. As in racing (Maron and Moore, "Hoeffding Races", NIPS 1993), only
those that could still be the best are re-evaluated.
"""

from collections.abc import Sequence

from autoprune.study.pareto import front
from autoprune.study.records import Record, directions, objective_values


def next_to_confirm(records: Sequence[Record], objectives: Sequence[str], most: int) -> Record | None:
    """The trial to re-evaluate: of those on the front with one evaluation, the one with the highest mAP.

    At a budget the front has one point, for candidates lie within a percent below it by chance.

    Args:
        records: all trials of the study; none that counts is running.
        objectives: what the front is of.
        most: repeats, those already begun among them.
    """
    repeated = {record.repeat_of for record in records if record.repeat_of is not None}
    if len(repeated) >= most:
        return None
    complete = [record for record in records if record.counts and record.state == "complete"]
    points = [objective_values(record.metrics, record.budget, objectives) for record in complete]
    leaders = [complete[index] for index in front(points, directions(objectives))]
    once = [record for record in leaders if record.number not in repeated]
    return max(once, key=lambda record: (record.metrics["map"], -record.number), default=None)
