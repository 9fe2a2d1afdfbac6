"""The Optuna study: opened in a journal file or behind a storage URL, and read as records."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import count, takewhile
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage
from optuna.trial import FrozenTrial, TrialState

from autoprune.errors import RunError
from autoprune.study.journal import Journal
from autoprune.study.pareto import Direction, front
from autoprune.study.trials import Metrics, Record, State

_STATES: dict[TrialState, State] = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "stopped",
    TrialState.FAIL: "failed",
}


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
        OSError: the journal file can't be written.
    """
    try:
        opened = _open(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=opened, study_name=name, directions=list(ways), load_if_exists=True
        )
    except Exception as error:  # each database driver has errors of its own
        if isinstance(storage, Path) and isinstance(error, OSError):
            raise  # the disk's: the caller knows the words for it
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RunError(f"cannot open the study in {storage}: {problem}; check --storage and --out") from error
    if [direction.name.lower() for direction in study.directions] != list(ways):
        raise RunError(f"the study {name} in {storage} has other objectives; choose another --out")
    return study, opened


def batch(storage: BaseStorage) -> AbstractContextManager[None]:
    """What is written inside the block reaches a journal in one piece; other storages write as they do."""
    journal = getattr(storage, "_backend", None)
    return journal.batch() if isinstance(journal, Journal) else nullcontext()


def load_study(storage: Path | str, name: str) -> optuna.Study:
    """Opens a study that is there, to read it.

    Raises:
        RunError: it is not there, or can't be read.
    """
    if isinstance(storage, Path) and not storage.is_file():
        raise RunError(f"{storage} is missing: the search has not begun; run `autoprune search` first")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.load_study(study_name=name, storage=_open(storage))
    except Exception as error:  # each database driver has errors of its own
        problem = " ".join(f"{type(error).__name__}: {error}".split())[:200]
        raise RunError(f"cannot read the study {name} in {storage}: {problem}; check --storage") from error


def _open(storage: Path | str) -> BaseStorage:
    if isinstance(storage, Path):
        return JournalStorage(Journal(storage))
    return optuna.storages.get_storage(storage)


def read_records(study: optuna.Study, known: dict[int, Record] | None = None) -> list[Record]:
    """All trials of a ledger's study but those that were put back into the queue, by number.

    Args:
        study: the study.
        known: records of finished trials by number, which do not change; those that are missing are added.
    """
    budgets = study.user_attrs.get("budgets") or [None]
    known = {} if known is None else known
    records = []
    for trial in study.get_trials(deepcopy=False):
        record = known.get(trial.number)
        if record is None:
            if trial.state == TrialState.WAITING or trial.user_attrs.get("requeued"):
                continue
            record = _record(trial, budgets)
            if trial.state.is_finished():
                known[trial.number] = record
        records.append(record)
    return _joined(records)


def _joined(records: list[Record]) -> list[Record]:
    """The same records, those that were measured again with what came out."""
    again: dict[int, list[Metrics]] = {}
    for record in records:
        if record.repeat_of is not None and record.state == "complete":
            again.setdefault(record.repeat_of, []).append(record.metrics)
    if not again:
        return records
    return [replace(record, again=tuple(again.get(record.number, ()))) for record in records]


def front_of(records: Sequence[Record], objectives: Sequence[str]) -> list[Record]:
    """The trials at the top rung that no other beats in all objectives, cheapest first."""
    done = [record for record in records if record.counts and record.state == "complete"]
    points = [[record.metrics[name] for name in objectives] for record in done]
    best = [done[index] for index in front(points, directions(objectives))]
    return sorted(best, key=lambda record: (record.metrics.get("gflops", 0.0), record.number))


def _record(trial: FrozenTrial, budgets: Sequence[float | None]) -> Record:
    attributes = trial.user_attrs
    rungs = takewhile(lambda name: name in attributes, (f"rung_{rung}" for rung in count()))
    return Record(
        number=trial.number,
        state=_STATES.get(trial.state, "running"),
        origin=attributes.get("origin", "sampler"),
        budget=budgets[trial.params.get("budget", 0)],
        widths=attributes.get("widths", {}),
        rungs=(reached := tuple(attributes[name] for name in rungs)),
        ranked_by=tuple(attributes.get(f"ranked_by_{rung}") for rung in range(len(reached))),
        reason=attributes.get("reason"),
        same_as=attributes.get("same_as"),
        repeat_of=attributes.get("repeat_of"),
    )
