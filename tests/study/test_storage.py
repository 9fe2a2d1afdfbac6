"""Studies opened in journals and databases; their objectives' names, read through Optuna's API."""

import sqlite3
from pathlib import Path

import optuna
import pytest
from optuna.storages.journal import JournalFileBackend

from autoprune.errors import RunError
from autoprune.study.ledger import Ledger
from autoprune.study.storage import (
    batch,
    check_storage,
    load_study,
    name_objectives,
    open_study,
    storage_failures,
)

from ..conftest import FakePlan, ledger_settings

DIRECTIONS = ("maximize", "minimize")
NAMES = ["mAP (fraction)", "GFLOPs"]


@pytest.fixture(params=["journal", "sqlite"])
def place(request, tmp_path):
    """Where a study lies: the path of a journal, or a URL."""
    return tmp_path / "study.journal" if request.param == "journal" else f"sqlite:///{tmp_path}/study.db"


@pytest.fixture
def optunas(place):
    """Opens the study as `optuna-dashboard` does, by Optuna alone."""
    storages = []

    def load(create=False):
        if isinstance(place, str):
            storages.append(optuna.storages.RDBStorage(place))
        else:
            storages.append(optuna.storages.JournalStorage(JournalFileBackend(str(place))))
        if create:
            return optuna.create_study(storage=storages[-1], study_name="s", directions=list(DIRECTIONS))
        return optuna.load_study(storage=storages[-1], study_name="s")

    yield load
    for storage in storages:
        close(storage)


def close(storage):
    storage.remove_session()
    engine = getattr(getattr(storage, "_backend", storage), "engine", None)
    if engine is not None:
        engine.dispose()


def open_ledger(place, **settings):
    ledger = Ledger(place, "s", FakePlan(), ledger_settings(**settings))
    ledger.release()
    close(ledger._store._storage)


def test_a_dashboard_shows_objectives_with_names_and_units(place, optunas):
    open_ledger(place)
    assert optunas().metric_names == NAMES


def test_an_older_study_gets_its_names_when_it_is_resumed(place, optunas):
    older = optunas(create=True)
    older.set_user_attr("identity", {"format": "2", "variables": "a, b"})
    older.set_user_attr("budgets", [None])
    assert optunas().metric_names is None
    open_ledger(place)
    assert optunas().metric_names == NAMES


def test_a_study_of_another_search_is_left_as_it_is(place, optunas):
    older = optunas(create=True)
    older.set_user_attr("identity", {"format": "2", "variables": "c"})
    with pytest.raises(RunError, match="another search: it differs in its variables"):
        open_ledger(place)
    assert optunas().metric_names is None


def test_all_objectives_have_names_and_names_that_are_set_stay():
    objectives = ("map", "gflops", "latency_ms")
    study = optuna.create_study(directions=["maximize", "minimize", "minimize"])
    name_objectives(study, objectives)
    assert study.metric_names == [*NAMES, "latency (ms)"]
    study.add_trial(optuna.trial.create_trial(values=[0.4, 10.0, 5.0]))
    assert {"values_mAP (fraction)", "values_GFLOPs", "values_latency (ms)"} <= set(study.trials_dataframe())
    with pytest.warns(optuna.exceptions.ExperimentalWarning):
        study.set_metric_names(["the", "user's", "own"])
    name_objectives(study, objectives)
    assert study.metric_names == ["the", "user's", "own"]


def test_opening_creates_a_study_once_and_refuses_other_objectives(place):
    study, storage = open_study(place, "s", DIRECTIONS)
    study.set_user_attr("note", 1)
    again, second = open_study(place, "s", DIRECTIONS)
    assert again.user_attrs == {"note": 1}
    with pytest.raises(RunError, match=r"the study s in .* has other objectives; choose another --out"):
        open_study(place, "s", ("maximize",))
    reader = load_study(place, "s")
    assert reader.user_attrs == {"note": 1}
    for each in (storage, second, reader._storage):
        close(each)


def test_a_journal_that_cannot_be_written_is_one_line(tmp_path):
    with pytest.raises(RunError, match=r"cannot write .*missing/study\.journal: No such file"):
        open_study(tmp_path / "missing" / "study.journal", "s", DIRECTIONS)


def test_a_study_that_does_not_exist_is_refused_in_one_line(tmp_path):
    with pytest.raises(RunError, match=r"missing: the search has not begun; run `autoprune search` first"):
        load_study(tmp_path / "study.journal", "s")
    with pytest.raises(
        RunError, match=r"cannot open the study s in nosuch://x: .*; check --storage"
    ) as raised:
        load_study("nosuch://x", "s")
    assert "\n" not in str(raised.value)


def test_a_batch_is_one_write_to_a_journal_and_nothing_special_elsewhere(tmp_path):
    journal = tmp_path / "study.journal"
    study, storage = open_study(journal, "s", DIRECTIONS)
    before = journal.read_bytes()
    with batch(storage):
        study.set_user_attr("first", 1)
        study.set_user_attr("second", 2)
        assert journal.read_bytes() == before
    assert journal.read_bytes().count(b"\n") == before.count(b"\n") + 2
    with batch(optuna.storages.InMemoryStorage()):
        pass


def damaged(journal, content):
    study, _ = open_study(journal, "s", DIRECTIONS)
    study.set_user_attr("note", 1)
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(content(lines))


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (lambda lines: b"".join([lines[0], b"\xff\x00no text\n", *lines[1:]]), "line 2 is damaged; restore"),
        (lambda lines: b"".join([lines[0], b"7\n"]), "line 2 is damaged"),
        (lambda lines: b"".join([lines[0], lines[1][:20] + b"\n"]), "line 2 is damaged; restore"),
        (lambda lines: lines[1], r"damaged \(.*\); restore it from a copy"),
        (lambda lines: b"", "is empty: the search has not begun, or the file was emptied"),
    ],
)
def test_a_damaged_journal_is_named_with_its_line_and_left_as_it_is(tmp_path, content, problem):
    journal = tmp_path / "study.journal"
    damaged(journal, content)
    before = journal.read_bytes()
    with pytest.raises(RunError, match=problem) as raised:
        load_study(journal, "s")
    assert str(journal) in str(raised.value)
    assert "\n" not in str(raised.value)
    assert "--storage" not in str(raised.value)
    assert journal.read_bytes() == before


def test_a_reader_opens_nothing_to_write(place, monkeypatch):
    with pytest.raises(RunError, match=r"study\.(journal|db) is missing: the search has not begun"):
        load_study(place, "s")
    assert not Path(str(place).removeprefix("sqlite:///")).exists()
    if isinstance(place, Path):
        open_study(place, "s", DIRECTIONS)
        opened = Path.open
        monkeypatch.setattr(Path, "open", lambda self, mode="r", **kw: opened(self, {"rb": mode}[mode], **kw))
        assert load_study(place, "s").study_name == "s"


def test_a_journal_that_cannot_be_read_says_why(tmp_path, monkeypatch):
    journal = tmp_path / "study.journal"
    open_study(journal, "s", DIRECTIONS)

    def refuse(self, *arguments, **keywords):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(RunError, match=r"cannot read .*study\.journal: Permission denied; check the path"):
        load_study(journal, "s")


@pytest.mark.parametrize(
    ("storage", "instead"),
    [
        ("ok.db", "sqlite:///ok.db"),
        ("my ok.db", "'sqlite:///my ok.db'"),
        ("/abs/ok.db", "sqlite:////abs/ok.db"),
        ("~/ok.db", f"sqlite:///{Path.home()}/ok.db"),
        ("sqlite:ok.db", "sqlite:///ok.db"),
        ("sqlite:/abs/ok.db", "sqlite:////abs/ok.db"),
        ("sqlite://ok.db", "sqlite:///ok.db"),
        ("postgres://me@host/db", "postgresql://me@host/db"),
        ("localhost:5432/db", "a URL such as sqlite:///study.db or postgresql+psycopg2://USER@HOST/DATABASE"),
        ("me:secret@host/db", "a URL such as sqlite:///study.db or postgresql+psycopg2://USER@HOST/DATABASE"),
    ],
)
def test_a_storage_that_is_no_url_is_refused_with_the_one_that_was_meant(storage, instead):
    with pytest.raises(RunError) as raised:
        check_storage(storage)
    given = storage.replace("secret", "***")
    assert str(raised.value) == f"--storage {given} (YAML: storage) is no SQLAlchemy URL; give {instead}"


def test_a_database_that_fails_while_a_study_is_used_is_one_line_without_its_password(tmp_path, monkeypatch):
    """A table that is gone stands for a server that is: SQLAlchemy raises the same error."""
    url = f"sqlite:///{tmp_path}/study.db?password=hidden"
    study, opened = open_study(f"sqlite:///{tmp_path}/study.db", "s", DIRECTIONS)
    with sqlite3.connect(tmp_path / "study.db") as database:
        database.execute("DROP TABLE study_user_attributes")
    monkeypatch.delenv("AUTOPRUNE_STORAGE", raising=False)
    failed = pytest.raises(RunError, match=r"^the storage sqlite.*: OperationalError: .*no such table")
    with failed as raised, storage_failures(url):
        study.set_user_attr("a", 1)
    message = str(raised.value)
    assert message.endswith("the same command resumes the search once it is there again")
    assert "hidden" not in message
    assert "\n" not in message
    for storage, error in ((None, KeyError("a")), (url, KeyError("a"))):  # no errors of a database
        with pytest.raises(KeyError), storage_failures(storage):
            raise error
    close(opened)
