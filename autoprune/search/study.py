"""The Optuna study: opened in a journal file or behind a storage URL."""

from collections.abc import Sequence
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.storages.journal import JournalFileBackend

from autoprune.errors import RunError
from autoprune.search.front import Direction


def directions(objectives: Sequence[str]) -> list[Direction]:
    """Which way each objective is better: mAP up, costs down."""
    return ["maximize" if name == "map" else "minimize" for name in objectives]


def open_study(storage: Path | str, name: str, ways: Sequence[Direction]) -> tuple[optuna.Study, BaseStorage]:
    """Opens or creates a study; returns it with its storage.

    Args:
        storage: path of a journal file, or an Optuna storage URL.
        name: the study's name.
        ways: direction of each objective.

    Raises:
        RunError: the storage can't be opened, or the study has other objectives.
    """
    try:
        opened: BaseStorage = (
            JournalStorage(JournalFileBackend(str(storage)))
            if isinstance(storage, Path)
            else optuna.storages.get_storage(storage)
        )
        study = optuna.create_study(
            storage=opened, study_name=name, directions=list(ways), load_if_exists=True
        )
    except Exception as error:  # each database driver has errors of its own
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RunError(f"cannot open the study in {storage}: {problem}; check --storage and --out") from error
    if [direction.name.lower() for direction in study.directions] != list(ways):
        raise RunError(f"the study {name} in {storage} has other objectives; choose another --out")
    return study, opened
