"""The learning rate of a recovery, from what the pruning cost: a detector that lost more has further to go.

Pruned detectors differ more in the rate they need than in anything else: on the demo's detector the best of
a grid rises tenfold from half of the GFLOPs to an eighth, and one that is three times too high or too low
costs up to 13 mAP. The fraction of its mAP that a detector has lost before any training says which; see
"Learning rates" in docs/benchmarks.md.
"""

PER_LOSS = 5e-3  # the rate of a detector that lost all of its mAP
LEAST, MOST = 1e-4, 4e-3


def recovery_rate(untrained_map: float, dense_map: float) -> float:
    """The peak learning rate, proportional to the fraction of its mAP that the pruned detector lost.

    Args:
        untrained_map: mAP of the pruned detector before it is trained.
        dense_map: mAP of the dense detector on the same images.
    """
    lost = 1 - untrained_map / dense_map if dense_map > 0 else 1.0
    return float(f"{min(max(PER_LOSS * lost, LEAST), MOST):.2g}")  # two digits, for messages
