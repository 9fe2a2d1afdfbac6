"""A study in a real PostgreSQL, where the packages of a server and of its driver are installed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import pytest

from autoprune import passwords
from autoprune.engines import local
from autoprune.errors import RunError
from autoprune.passwords import VARIABLE, masked
from autoprune.study.ledger import Ledger
from autoprune.study.storage import check_storage

from ..conftest import ledger_settings
from .conftest import wait_until

pytest.importorskip("psycopg2", reason="pip install 'autoprune[postgresql]'")
BINARIES = [Path(initdb).parent for initdb in [shutil.which("initdb")] if initdb]
BINARIES += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server is installed")


@pytest.fixture(scope="module")
def url():
    """The URL of a database of a server that ends with the tests; it asks for no password."""
    with server() as place:
        yield f"postgresql+psycopg2://tester@/postgres?host={place}"


@contextmanager
def server(password=None):
    """Runs a server for its user ``tester``, who needs the password; yields the folder of its socket."""
    user = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, "postgres")
        options = {"cwd": folder, "check": True, "capture_output": True, **user}
        initdb, postgres = (str(BINARIES[-1] / program) for program in ("initdb", "postgres"))
        (folder / "password").write_text(f"{password}\n")
        asks = ["-A", "trust"] if password is None else ["-A", "scram-sha-256", f"--pwfile={name}/password"]
        subprocess.run([initdb, "-D", f"{name}/data", "-U", "tester", "--no-sync", *asks], **options)
        command = [postgres, "-D", f"{name}/data", "-k", name, "-c", "listen_addresses=", "-c", "fsync=off"]
        with (
            open(os.devnull, "w") as nowhere,
            subprocess.Popen(command, cwd=folder, stdout=nowhere, stderr=nowhere, **user) as process,
        ):
            wait_until(lambda: answers(name), process)
            yield name
            process.send_signal(signal.SIGINT)  # SIGTERM would wait for clients, a killed driver's among them


def answers(folder):
    """Whether the server whose socket is in the folder takes connections, or asks for a password."""
    import psycopg2

    try:
        psycopg2.connect(host=folder, user="tester", dbname="postgres").close()
    except psycopg2.OperationalError as error:
        return "password" in str(error)  # else it is starting up, or has no socket yet
    return True


@pytest.fixture
def make_ledger(url, make_ledger):
    """A ledger of the same plan as the other tests' in the database; connections are closed at the end."""
    opened = []

    def make(trials=6, **settings):
        settings = ledger_settings(trials=trials, rungs=2, **settings)
        opened.append(Ledger(url, "s", make_ledger(name="plan").plan, settings))
        return opened[-1]

    yield make
    for ledger in opened:
        ledger.release()
        storage = ledger._store._storage
        storage.remove_session()
        storage._backend.engine.dispose()


def test_a_search_runs_resumes_and_is_refused_to_a_second_driver(make_ledger, evaluator, url, tmp_path):
    first = make_ledger(trials=3)
    local.run(first, evaluator(), lambda number: None)
    first.release()

    # A driver in another process, killed with -9, leaves its trial in flight.
    script = textwrap.dedent(f"""
        import signal, sys
        sys.path.insert(0, {str(Path(__file__).parent.parent)!r})
        from conftest import FakePlan, ledger_settings
        from autoprune.study.ledger import Ledger
        ledger = Ledger({url!r}, "s", FakePlan(), ledger_settings(rungs=2))
        print(ledger.ask().number, flush=True)
        signal.pause()
    """)
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as other:
        assert int(other.stdout.readline()) == 3
        with pytest.raises(RunError, match=f"in use by another driver .* pid {other.pid}"):
            make_ledger()
        other.kill()
    resumed = make_ledger(trials=6)
    local.run(resumed, evaluator(), lambda number: None)
    records = resumed.finished()
    assert len({tuple(record.widths.values()) for record in records}) == len(records) == 6
    assert not any(record.state == "failed" for record in records)


def test_a_server_that_cannot_be_reached_is_one_line(tmp_path):
    settings = ledger_settings(trials=1)
    with pytest.raises(RunError, match=r"cannot open the study s in postgresql.*; check --storage") as raised:
        Ledger(f"postgresql+psycopg2://x@/x?host={tmp_path}", "s", None, settings)
    assert "\n" not in str(raised.value)


def test_a_masked_password_comes_from_the_environment_or_the_drivers_file(tmp_path, monkeypatch):
    """A server that asks for a password; each way to give it is tried as in a new process."""
    secret = "p@ss/w:rd"
    file = tmp_path / "pgpass"
    file.write_text("*:*:*:tester:p@ss/w\\:rd\n")
    file.chmod(0o600)
    for name in (VARIABLE, "PGPASSWORD", "PGPASSFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    with server(secret) as place:
        url = f"postgresql+psycopg2://tester:{quote(secret, safe='')}@/postgres?host={place}"

        def opens(storage, **variables):
            monkeypatch.setattr(passwords, "_known", {})
            with monkeypatch.context() as context:
                for name, value in variables.items():
                    context.setenv(name, value)
                check_storage(storage)

        opens(url)
        stored = masked(url)
        assert stored == f"postgresql+psycopg2://tester:***@/postgres?host={place}"
        opens(stored, **{VARIABLE: url})
        opens(stored, PGPASSFILE=str(file))
        opens(stored.replace(":***", ""), **{VARIABLE: url})
        for variables in (
            {},
            {VARIABLE: url.replace("rd@", "RD@")},
            {VARIABLE: url.replace("tester", "other")},
        ):
            with pytest.raises(
                RunError, match=r"cannot open the storage .*tester:\*\*\*@.*check --stor"
            ) as raised:
                opens(stored, **variables)
            assert VARIABLE in str(raised.value) or variables
            assert not [form for form in (secret, quote(secret, safe="")) if form in str(raised.value)]
