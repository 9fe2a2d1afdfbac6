import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import warnings

import pytest

from autoprune.engines import ray_setup
from autoprune.engines.ray_setup import (
    SCRATCH_PREFIX,
    environment,
    keep_sigterm,
    no_cluster,
    quiet,
    remove_abandoned,
    scratch_folder,
)
from autoprune.process import signals_interrupt


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_an_address_where_nobody_listens_is_refused_at_once(form):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(OSError, match="refused"):
        ray_setup.check_reachable(form.format(port))
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        ray_setup.check_reachable(form.format(listening.getsockname()[1]))
    for elsewhere in (None, "auto", "local"):
        ray_setup.check_reachable(elsewhere)


def test_variables_are_set_where_they_are_missing_and_removed_again(monkeypatch):
    monkeypatch.setenv("AUTOPRUNE_TEST_SET", "the user's")
    monkeypatch.delenv("AUTOPRUNE_TEST_MISSING", raising=False)
    with environment({"AUTOPRUNE_TEST_SET": "ours", "AUTOPRUNE_TEST_MISSING": "ours"}):
        assert os.environ["AUTOPRUNE_TEST_SET"] == "the user's"
        assert os.environ["AUTOPRUNE_TEST_MISSING"] == "ours"
    assert os.environ["AUTOPRUNE_TEST_SET"] == "the user's"
    assert "AUTOPRUNE_TEST_MISSING" not in os.environ


def test_the_handler_of_sigterm_is_restored():
    def ours(number, frame):
        raise AssertionError

    before = signal.signal(signal.SIGTERM, ours)
    try:
        with keep_sigterm():
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
        assert signal.getsignal(signal.SIGTERM) is ours
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("code", [signal.SIGTERM, 1])  # of Ray's driver, and of its head node
def test_a_sigterm_while_another_handler_is_in_force_gets_to_ours(code):
    def rays(number, frame):
        sys.exit(code)

    def start_ray():
        signal.signal(signal.SIGTERM, rays)
        signal.raise_signal(signal.SIGTERM)

    with signals_interrupt():
        ours = signal.getsignal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt), keep_sigterm():
            start_ray()
        assert signal.getsignal(signal.SIGTERM) is ours


def test_rays_warnings_and_loggers_are_silent_inside(recwarn):
    logger = logging.getLogger("ray.tune")
    before = logger.level
    with quiet():
        assert not logger.isEnabledFor(logging.ERROR)
        warnings.warn_explicit("for developers", FutureWarning, "tune.py", 1, module="ray.tune.tuner")
    assert logger.level == before
    assert not recwarn.list


@pytest.mark.parametrize(
    ("address", "error", "expected"),
    [
        (
            "auto",
            "Version mismatch: Ray: 2.9.0\n  Python: 3.9",
            "has other versions of Ray or Python: Version",
        ),
        ("ray://h:1", "Initialization failure from server", "head node at ray://h:1 can't start its process"),
        (None, "port in use", "Ray can't be started here: port in use; try again, or choose --engine local"),
        (
            "h:6379",
            "refused",
            "no Ray cluster at h:6379: refused; start one with `ray start --head`, or omit",
        ),
        ("ray://h:1", "refused", "`ray start --head` (it serves clients at port 10001"),
    ],
)
def test_a_failed_connection_is_explained_in_one_line(address, error, expected):
    message = str(no_cluster(address, RuntimeError(error)))
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        ("refused. Note: RAY_AUTH_MODE is currently 'disabled' (not 'token').", "RAY_AUTH_MODE is not set"),
        ("enabled but no authentication token was found", "this machine has no token"),
        ("enabled but Ray couldn't find an authentication token", "this machine has no token"),
        ("InvalidAuthToken: missing or incorrect", "this machine's token is not the cluster's"),
    ],
)
def test_a_refused_token_is_explained_in_one_line(problem, reason):
    class AuthenticationError(Exception):  # Ray's, which older versions do not have
        pass

    message = str(no_cluster("h:6379", AuthenticationError(problem)))
    assert "the Ray cluster at h:6379 can't be used: " in message
    assert reason in message
    assert (
        "set RAY_AUTH_MODE=token for every node and for this command, and copy ~/.ray/auth_token" in message
    )


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """The folder that temporary folders are made in, for this process and those that it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


@pytest.fixture
def start():
    """Starts a process with a scratch folder, which ends once it can read a line; returns both."""
    script = (
        "from autoprune.engines.ray_setup import scratch_folder\n"
        "with scratch_folder() as folder:\n"
        "    print(folder, flush=True)\n"
        "    input()\n"
    )
    processes = []

    def make():
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        processes.append(process)
        return process, process.stdout.readline().strip()

    yield make
    for process in processes:
        process.kill()
        process.communicate()


def test_what_killed_processes_left_is_removed_and_what_others_use_stays(temporary, start):
    killed, abandoned = start()
    running, used = start()
    assert os.path.isdir(abandoned)
    assert os.path.isdir(used)
    killed.kill()
    killed.wait()
    with open(f"{abandoned}/session_latest", "w") as leftover:
        leftover.write("x")
    with scratch_folder() as folder:
        assert sorted(map(str, temporary.iterdir())) == sorted([used, folder])
        with scratch_folder() as second:  # nor does a process remove its own
            assert os.path.isdir(folder)
            assert second != folder
    running.communicate("\n")
    assert list(temporary.iterdir()) == []


def test_a_reused_process_id_is_no_owner(temporary):
    folder = temporary / f"{SCRATCH_PREFIX}dead"
    folder.mkdir()
    (folder / "in-use").write_text(f"in use by process {os.getpid()} on {socket.gethostname()}\n")
    remove_abandoned(temporary)
    assert not folder.exists()


def test_folders_of_other_users_or_without_a_written_lock_stay(temporary, monkeypatch):
    begun, empty, theirs = (temporary / f"{SCRATCH_PREFIX}{name}" for name in ("begun", "empty", "theirs"))
    for folder in (begun, empty, theirs):
        folder.mkdir()
    (empty / "in-use").touch()  # as between making the folder and holding the lock
    (temporary / f"{SCRATCH_PREFIX}link").symlink_to(theirs)
    remove_abandoned(temporary)
    assert begun.exists()
    assert empty.exists()
    (theirs / "in-use").write_text("in use by process 1 on elsewhere")
    monkeypatch.setattr(ray_setup.os, "getuid", lambda: os.stat(theirs).st_uid + 1)
    remove_abandoned(temporary)
    assert theirs.exists()
