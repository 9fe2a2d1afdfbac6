"""Which trials to re-evaluate before one is called the best.

The best of many measurements is partly the luckiest (the winner's curse): in three searches of twelve trials,
the winner's mAP fell by up to 1.3 points when it was recovered with another seed. So a trial leads on the
mean of two evaluations or not at all. As in racing (Maron and Moore, "Hoeffding Races", NIPS 1993), only
those that could still be the best are re-evaluated: each leader, and the trials of its budget that can't be
told from a leader at their cost, by the paired error of the images and the seed variance of both. Where no
errors were kept, that is each leader.
"""

from collections import Counter
from collections.abc import Sequence

from autoprune.study.compare import is_worse
from autoprune.study.pareto import front, losses
from autoprune.study.records import Record, directions, objective_values

SEED_DEVIATION = 0.006
"""Standard deviation of a trial's mAP under another seed, a fraction."""


def next_to_confirm(records: Sequence[Record], objectives: Sequence[str], most: int) -> Record | None:
    """The trial to re-evaluate: of those that could be the best, measured once, that of the highest mAP.

    These are on the front, or can't be told from any one there that costs no more, at the same budget. At a
    budget the front has one point, for candidates lie within a percent below it by chance.

    Args:
        records: all trials of the study; none that counts is running.
        objectives: what the front is of.
        most: repeats for each budget, those already begun among them. A run that was extended may make as
            many again: those before its last trial don't count.
    """
    repeated = {record.repeat_of for record in records if record.repeat_of is not None}
    complete = [record for record in records if record.counts and record.state == "complete"]
    last = max((record.number for record in records if record.counts), default=-1)
    begun = Counter(r.budget for r in records if r.repeat_of is not None and r.number > last)
    points = [objective_values(record.metrics, record.budget, objectives) for record in complete]
    leaders = front(points, directions(objectives))
    costs = losses(points, directions(objectives))[:, [name != "map" for name in objectives]]

    def is_beaten(index: int) -> bool:
        """Whether a leader of the budget that costs no more is better beyond the errors (if known)."""
        return any(
            complete[leader].budget == complete[index].budget
            and bool((costs[leader] <= costs[index]).all())
            and is_worse(complete[index], complete[leader], SEED_DEVIATION * 2**0.5)
            for leader in leaders
        )

    could_lead = [each for index, each in enumerate(complete) if index in leaders or not is_beaten(index)]
    once = [each for each in could_lead if each.number not in repeated and begun[each.budget] < most]
    return max(once, key=lambda record: (record.metrics["map"], -record.number), default=None)
