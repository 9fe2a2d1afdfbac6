"""The last table of `autoprune demo`, and what it means in plain words."""

from collections.abc import Mapping, Sequence

from autoprune.cli.demo_comparison import Compared, Comparison, Measured
from autoprune.data import demo_detector
from autoprune.data.standard_error import paired_error
from autoprune.report.headline import format_steps, map_change
from autoprune.report.tables import Entry, Kind, cost

SIBLING = "smaller sibling"


def table_entries(comparison: Comparison, compared: Sequence[Compared]) -> list[Entry]:
    """The dense detector, the compared trials, and the smaller sibling, for `report.tables.comparison`."""
    dense = comparison.dense
    trials = []
    for item in compared:
        recovered = comparison.recovered.get(item.trial)
        name = f"{item.budget / dense.gflops:.0%} {item.kind}"
        recovered_map = None if recovered is None else recovered.scores.map
        trials.append(_entry(name, item.kind, comparison.untrained[item.trial], recovered_map))
    return [_entry("dense", "dense", dense), *trials, sibling_entry(comparison)]


def sibling_entry(comparison: Comparison, map: float | None = None) -> Entry:
    """The smaller sibling for tables and plots, with its mAP on the test images or the one given."""
    entry = _entry(SIBLING, "sibling", comparison.sibling)
    return entry if map is None else Entry(SIBLING, "sibling", map, entry.gflops, entry.mparams)


def sentences(comparison: Comparison, compared: Sequence[Compared], steps: Mapping[int, int]) -> list[str]:
    """What the table shows: the gain of the search at each budget, and the smaller sibling.

    Args:
        comparison: what was measured.
        compared: the trials in it.
        steps: of each recovery, by trial.
    """
    dense = comparison.dense
    lines = []
    for budget in dict.fromkeys(item.budget for item in compared):
        trials = [item for item in compared if item.budget == budget]
        lines.append(f"{budget / dense.gflops:.0%}: {search_sentence(comparison, trials)}")
    recovered = [item for item in compared if item.trial in comparison.recovered]
    if recovered:
        nearest = min(recovered, key=lambda item: abs(item.budget - comparison.sibling.gflops))
        trained, sibling = comparison.recovered[nearest.trial], comparison.sibling
        lines.append(sibling_sentence(trained, sibling, steps[nearest.trial]))
    return lines


def search_sentence(comparison: Comparison, trials: Sequence[Compared]) -> str:
    """Whether the searched policy of a budget is above the best one-shot policy, before any training.

    Uniform pruning counts as a one-shot policy. The best one is chosen by the mAP on the test images, which
    favors it.

    Args:
        comparison: what was measured.
        trials: the compared trials of one budget.
    """
    scores = {item.trial: comparison.untrained[item.trial].scores for item in trials}
    searched = next((item for item in trials if item.kind == "searched"), None)
    one_shot = [item for item in trials if item.kind != "searched"]
    if searched is None or not one_shot:
        missing = "searched" if searched is None else "one-shot"
        return f"no {missing} policy was measured, so nothing can be said of the search."
    rival = max(one_shot, key=lambda item: scores[item.trial].map)
    ours, theirs = scores[searched.trial], scores[rival.trial]
    gain, error = ours.map - theirs.map, paired_error(ours.bootstrap, theirs.bootstrap)
    distance = f"{abs(map_change(ours.map, theirs.map)):.1f} mAP"
    best = f"the best one-shot policy ({rival.origin})"
    if gain > error:
        return f"the search ends {distance} above {best}; standard error {100 * error:.1f}."
    if gain > 0:
        return (
            f"the search gains nothing that can be shown: {distance} above {best}, within the standard "
            f"error of {100 * error:.1f}."
        )
    return f"the search does not beat {best}: {distance} below it; standard error {100 * error:.1f}."


def sibling_sentence(pruned: Measured, sibling: Measured, steps: int) -> str:
    """Whether a recovered detector is above the smaller sibling.

    Args:
        pruned: the recovered detector.
        sibling: the smaller sibling.
        steps: of the recovery.
    """
    gain = pruned.scores.map - sibling.scores.map
    error = paired_error(pruned.scores.bootstrap, sibling.scores.bootstrap)
    distance = f"{abs(map_change(pruned.scores.map, sibling.scores.map)):.1f} mAP"
    side = "above" if gain > 0 else "below"
    start = (
        f"The recovered detector at {cost(pruned.gflops)} GFLOPs ends {distance} {side} the smaller sibling "
        f"at {cost(sibling.gflops)} GFLOPs"
    )
    if abs(gain) <= error:
        return f"{start}, within the standard error of {100 * error:.1f}: neither is shown to be better."
    end = f"{start}; standard error {100 * error:.1f}."
    if gain > 0:
        return end
    return (
        f"{end} The sibling was trained for {format_steps(demo_detector.TRAINING['steps'])} at its size, the "
        f"pruned detector for {format_steps(steps)}."
    )


def _entry(name: str, kind: Kind, measured: Measured, recovered_map: float | None = None) -> Entry:
    return Entry(
        name,
        kind,
        measured.scores.map,
        measured.gflops,
        measured.mparams,
        measured.latency_ms,
        recovered_map=recovered_map,
    )
