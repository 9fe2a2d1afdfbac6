"""The Optuna study: opened in a journal file or behind a storage URL, its objectives named for dashboards."""

import re
import shlex
import warnings
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import optuna
from optuna.storages import BaseStorage, JournalStorage

from autoprune.errors import RunError
from autoprune.files import unwritable
from autoprune.passwords import MASK, VARIABLE, has_password, hide, masked, with_password
from autoprune.study.journal import Journal
from autoprune.study.pareto import Direction

_IN_MEMORY = re.compile(r"^sqlite(\+\w+)?:/{0,3}(\?.*)?$|:memory:|mode=memory")
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
    """
    try:
        opened = _open(storage)
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        study = optuna.create_study(
            storage=opened, study_name=name, directions=list(directions), load_if_exists=True
        )
    except Exception as error:  # each database driver has errors of its own
        if isinstance(storage, Path) and isinstance(error, OSError):
            raise unwritable(storage, error) from error
        raise _problem(storage, name, error) from _cause(storage, error)
    if [direction.name.lower() for direction in study.directions] != list(directions):
        raise RunError(f"the study {name} in {shown(storage)} has other objectives; choose another --out")
    return study, opened


def load_study(storage: Path | str, name: str) -> optuna.Study:
    """Opens an existing study, to read it.

    Raises:
        RunError: it does not exist, or can't be read.
    """
    file = storage if isinstance(storage, Path) else _sqlite_file(storage)
    if file is not None and not file.exists():  # else a reader would make it
        raise RunError(f"{file} is missing: the search has not begun; run `autoprune search` first")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    try:
        return optuna.load_study(study_name=name, storage=_open(storage, read_only=True))
    except Exception as error:  # each database driver has errors of its own
        raise _problem(storage, name, error) from _cause(storage, error)


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


def check_storage(storage: str | None) -> None:
    """Refuses a storage that can't be opened, or does not outlive this process, before a run begins.

    Args:
        storage: an Optuna storage URL; ``None`` for the run's own journal.

    Raises:
        RunError: see above.
    """
    if storage is None:
        return
    if _IN_MEMORY.search(storage):
        raise RunError(
            f"--storage {shown(storage)} (YAML: storage) keeps the study in memory, where no later command "
            "can read it; give a file such as sqlite:///study.db"
        )
    if (meant := _meant(storage)) is not None:
        raise RunError(f"--storage {shown(storage)} (YAML: storage) is no SQLAlchemy URL; give {meant}")
    try:
        _open(storage)
    except Exception as error:  # each database driver has errors of its own
        raise _problem(storage, None, error) from _cause(storage, error)


@contextmanager
def storage_failures(storage: str | None) -> Iterator[None]:
    """Says in one line that the database of a study failed while it was used.

    Args:
        storage: an Optuna storage URL; ``None`` for a journal, whose errors are those of its file.

    Raises:
        RunError: see above.
    """
    try:
        yield
    except Exception as error:
        if storage is None or not _is_of_database(error):
            raise
        problem = hide(_line_of(error.__cause__ or error), with_password(storage))[:200]
        raise RunError(
            f"the storage {shown(storage)} failed: {problem}; finished trials are kept, and the same command "
            "resumes the search once it is there again"
        ) from _cause(storage, error)


def shown(storage: Path | str) -> str:
    """A storage in a message: its path, or its URL with the password masked."""
    return masked(storage) if isinstance(storage, str) else str(storage)


def _open(storage: Path | str, read_only: bool = False) -> BaseStorage:
    if isinstance(storage, Path):
        return JournalStorage(Journal(storage, read_only))
    return optuna.storages.get_storage(with_password(storage))


def _meant(storage: str) -> str | None:
    """What to give, as a shell reads it, for a text that is no URL for SQLAlchemy; ``None`` for all others.

    A path is an SQLite database, ``sqlite:`` needs three slashes, ``postgres://`` is what some hosts give.
    """
    scheme, mark, rest = storage.partition("://")
    if mark and scheme == "postgres":
        return shlex.quote(masked(f"postgresql://{rest}"))
    if (match := re.fullmatch(r"(sqlite(?:\+\w+)?):(/{0,2})([^/].*)", storage)) is not None:
        root = "/" if match[2] == "/" else ""
        return shlex.quote(masked(f"{match[1]}:///{root}{match[3]}"))
    if mark:
        return None
    if "@" in storage or re.match(r"[\w+.-]*:", storage):  # USER@HOST, HOST:PORT, or another scheme
        return "a URL such as sqlite:///study.db or postgresql+psycopg2://USER@HOST/DATABASE"
    return shlex.quote(f"sqlite:///{Path(storage).expanduser()}")


def _sqlite_file(storage: str) -> Path | None:
    """The file of an SQLite database; ``None`` for other storages."""
    match = re.fullmatch(r"sqlite(?:\+\w+)?:///([^?]+)(?:\?.*)?", storage)
    return None if match is None or match[1].startswith("file:") else Path(match[1])


def _problem(storage: Path | str, name: str | None, error: Exception) -> RunError:
    """The error to raise where a study can't be opened, with what to do about it."""
    if isinstance(error, RunError):
        return error
    problem = _line_of(error)
    if not isinstance(storage, Path):
        what = "the storage" if name is None else f"the study {name} in"
        problem = hide(problem, with_password(storage))[:200]
        check = f"check --storage (YAML: storage){_remedy(storage)}"
        return RunError(f"cannot open {what} {shown(storage)}: {problem}; {check}")
    problem = problem[:200]
    if isinstance(error, OSError):
        return RunError(f"cannot read {storage}: {error.strerror}; check the path and its permissions")
    if isinstance(error, KeyError) and not storage.read_bytes().strip():
        return RunError(
            f"{storage} is empty: the search has not begun, or the file was emptied; run `autoprune search`, "
            "or restore the file from a copy"
        )
    return RunError(
        f"{storage} is damaged ({problem}); restore it from a copy, or search again with another --out"
    )


def _is_of_database(error: Exception) -> bool:
    internal = isinstance(error, optuna.exceptions.StorageInternalError)
    return internal or type(error).__module__.startswith("sqlalchemy.")


def _line_of(error: BaseException) -> str:
    text = str(error).partition("(Background on this error")[0]  # a link that SQLAlchemy adds
    return " ".join(f"{type(error).__name__}: {text}".split())


def _remedy(storage: str) -> str:
    """What to do besides, where a run has masked the password and nothing gives it."""
    if MASK not in storage or has_password(with_password(storage)):
        return ""
    return f", or give its password: in --storage, in {VARIABLE} (the whole URL), or in the driver's own file"


def _cause(storage: Path | str, error: Exception) -> Exception | None:
    """The cause to show with --debug; ``None`` where its text holds a password."""
    url = None if isinstance(storage, Path) else with_password(storage)
    seen: BaseException | None = error
    while seen is not None:
        if hide(str(seen), url) != str(seen):
            return None
        seen = seen.__cause__ or seen.__context__
    return error
