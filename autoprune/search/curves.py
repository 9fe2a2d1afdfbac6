"""Sensitivity curves by the engine of the settings: here, or side by side on a Ray cluster."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from autoprune.config import Config
from autoprune.engines.table import ENGINES
from autoprune.importance import Importance
from autoprune.importance.curves import Curve, curve_scores
from autoprune.search.session import cluster_of, for_workers
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.task.sensitivity import SensitivityProbe, measure_curves


def score_curves(task: PruningTask, order: Importance, path: Path) -> Importance:
    """Scores made of the sensitivity curves of all prunable groups: {group: [width]}.

    Args:
        task: detector and data; its settings name the engine.
        order: {group: [width]}, which says the channels that go first.
        path: JSON file to read curves from and to keep them in.

    Raises:
        RunError: the file is damaged or can't be written; the cluster can't be reached, or is lost.
        TrainingError: a narrowed detector can't be measured.
    """
    config = task.config
    engine = ENGINES[config.engine]

    def measure(names: Sequence[str]) -> Iterable[tuple[str, Curve]]:
        if engine.in_driver:
            return engine.each(lambda: SensitivityProbe(task, order), names, cluster_of(config))
        return engine.each(partial(load_probe, for_workers(config), order), names, cluster_of(config))

    return curve_scores(measure_curves(task, order, path, measure), order, task.graph)


def load_probe(config: Config, order: Importance) -> SensitivityProbe:
    """Loads everything once, in a worker's process; for the arguments see `SensitivityProbe`."""
    return SensitivityProbe(load_task(config), order)
