"""Sensitivity curves by the engine of the settings: here, or side by side on a Ray cluster."""

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path

from autoprune.config import Config
from autoprune.engines.table import ENGINES
from autoprune.importance import Importance
from autoprune.importance.curves import Curve, curve_scores
from autoprune.search.session import cluster_of, for_workers
from autoprune.space.file import SpaceFile
from autoprune.task.pruning_task import PruningTask, load_task
from autoprune.task.sensitivity import SensitivityProbe, measure_curves


def score_curves(task: PruningTask, order: Importance, path: Path, empty: bool) -> Importance:
    """Scores made of the sensitivity curves of all prunable groups: {group: [width]}.

    Args:
        task: detector and data; its settings name the engine.
        order: {group: [width]}, which says the channels that go first.
        path: JSON file to read curves from and to keep them in.
        empty: whether trials may empty groups; see `SensitivityProbe`.

    Raises:
        RunError: the file is damaged or can't be written; the cluster can't be reached, or is lost.
        TrainingError: a narrowed detector can't be measured.
    """
    config = task.config
    engine = ENGINES[config.engine]

    def measure(names: Sequence[str]) -> Iterable[tuple[str, Curve]]:
        if engine.in_driver:
            return engine.each(lambda: SensitivityProbe(task, order, empty), names, cluster_of(config))
        load = partial(load_probe, for_workers(config), order, empty)
        return engine.each(load, names, cluster_of(config))

    return curve_scores(measure_curves(task, order, path, measure, empty), order, task.graph)


def may_empty(config: Config, file: SpaceFile | None) -> bool:
    """Whether trials may empty groups: as their space says, or the settings for one that is derived."""
    return config.empty_blocks if file is None else file.has_empty_blocks


def load_probe(config: Config, order: Importance, empty: bool) -> SensitivityProbe:
    """Loads everything once, in a worker's process; for the arguments see `SensitivityProbe`."""
    return SensitivityProbe(load_task(config), order, empty)
