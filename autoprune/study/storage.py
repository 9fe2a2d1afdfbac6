"""The Optuna study: opened in a journal file or behind a storage URL, its objectives named for dashboards."""

import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage

from autoprune.errors import RunError
from autoprune.study.journal import Journal
from autoprune.study.pareto import Direction

METRIC_NAMES = {"map": "mAP (fraction)", "gflops": "GFLOPs", "latency_ms": "latency (ms)"}


def open_study(
    storage: Path | str, name: str, directions: Sequence[Direction]
) -> tuple[optuna.Study, BaseStorage]:
    """Opens or creates a study; returns it with its storage.

    Args:
        storage: path of a journal file, or an Optuna storage URL.
        name: the study's name.
        directions: direction of each objective.

    Raises:
        RunError: the storage can't be opened, or the study has other objectives.
        OSError: the journal file can't be written.
    """
    try:
        opened = _open(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=opened, study_name=name, directions=list(directions), load_if_exists=True
        )
    except Exception as error:  # each database driver has errors of its own
        if isinstance(storage, Path) and isinstance(error, OSError):
            raise  # the disk's: the caller knows the words for it
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RunError(f"cannot open the study in {storage}: {problem}; check --storage and --out") from error
    if [direction.name.lower() for direction in study.directions] != list(directions):
        raise RunError(f"the study {name} in {storage} has other objectives; choose another --out")
    return study, opened


def load_study(storage: Path | str, name: str) -> optuna.Study:
    """Opens an existing study, to read it.

    Raises:
        RunError: it does not exist, or can't be read.
    """
    if isinstance(storage, Path) and not storage.is_file():
        raise RunError(f"{storage} is missing: the search has not begun; run `autoprune search` first")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.load_study(study_name=name, storage=_open(storage))
    except Exception as error:  # each database driver has errors of its own
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RunError(f"cannot read the study {name} in {storage}: {problem}; check --storage") from error


def name_objectives(study: optuna.Study, objectives: Sequence[str]) -> None:
    """Names the objectives, with units, for `optuna-dashboard`; a study that has names keeps them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if study.metric_names is None:
            study.set_metric_names([METRIC_NAMES[name] for name in objectives])


def batch(storage: BaseStorage) -> AbstractContextManager[None]:
    """What is written inside the block reaches a journal in one piece; other storages write as they do."""
    journal = getattr(storage, "_backend", None)
    return journal.batch() if isinstance(journal, Journal) else nullcontext()


def _open(storage: Path | str) -> BaseStorage:
    if isinstance(storage, Path):
        return JournalStorage(Journal(storage))
    return optuna.storages.get_storage(storage)
