"""The learning rate of a recovery, from what the pruning cost: a detector that lost more has further to go.

Pruned detectors differ more in the rate they need than in anything else: on the demo's detector the best of
a grid rises tenfold from half of the GFLOPs to an eighth, and one that is three times too high or too low
costs up to 13 mAP. The fraction of its mAP that a detector has lost before any training says which; see
"Learning rates" in docs/benchmarks.md.
"""

PER_LOSS = 5e-3  # the rate of a detector that lost all of its mAP
PER_RESIZING = 2e-3  # that of one which sees images of another size and lost all to that
LEAST, MOST = 1e-4, 4e-3


def recovery_rate(untrained_map: float, dense_map: float, full_size_map: float | None = None) -> float:
    """The peak learning rate, proportional to the fraction of its mAP that the pruned detector lost.

    What a smaller input size costs counts less than half: there, the weights are those that fit.

    Args:
        untrained_map: mAP of the pruned detector before it is trained.
        dense_map: mAP of the dense detector on the same images, at the same size.
        full_size_map: that of the dense detector at its own input size; ``None`` where that is the same.
    """
    resized = 0.0 if full_size_map is None else _lost(dense_map, full_size_map)
    rate = PER_LOSS * _lost(untrained_map, dense_map) + PER_RESIZING * resized
    return float(f"{min(max(rate, LEAST), MOST):.2g}")  # two digits, for messages


def _lost(remaining: float, before: float) -> float:
    """The fraction of a mAP that is gone, 0 to 1; all of it where there was none."""
    return max(0.0, 1 - remaining / before) if before > 0 else 1.0
