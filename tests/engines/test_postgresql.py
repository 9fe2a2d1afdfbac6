"""A study in a real PostgreSQL, where the packages of a server and of its driver are installed."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from autoprune.engines import local
from autoprune.errors import RunError
from autoprune.study.ledger import Ledger

from ..conftest import ledger_settings
from .conftest import wait_until

pytest.importorskip("psycopg2", reason="pip install 'autoprune[postgresql]'")
BINARIES = [Path(initdb).parent for initdb in [shutil.which("initdb")] if initdb]
BINARIES += sorted(Path("/usr/lib/postgresql").glob("*/bin"))
pytestmark = pytest.mark.skipif(not BINARIES, reason="no PostgreSQL server is installed")


@pytest.fixture(scope="module")
def url():
    """The URL of a database of a server that ends with the tests."""
    user = {"user": "postgres"} if os.getuid() == 0 else {}  # it refuses to run as root
    with tempfile.TemporaryDirectory(prefix="pg") as name:
        folder = Path(name)
        if user:
            shutil.chown(folder, "postgres")
        options = {"cwd": folder, "check": True, "capture_output": True, **user}
        initdb, postgres = (str(BINARIES[-1] / program) for program in ("initdb", "postgres"))
        subprocess.run([initdb, "-D", f"{name}/data", "-U", "tester", "-A", "trust", "--no-sync"], **options)
        command = [postgres, "-D", f"{name}/data", "-k", name, "-c", "listen_addresses=", "-c", "fsync=off"]
        with (
            open(os.devnull, "w") as nowhere,
            subprocess.Popen(command, cwd=folder, stdout=nowhere, stderr=nowhere, **user) as server,
        ):
            wait_until((folder / ".s.PGSQL.5432").exists, server)
            yield f"postgresql+psycopg2://tester@/postgres?host={name}"
            server.send_signal(signal.SIGINT)  # SIGTERM would wait for clients, a killed driver's among them


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
