"""What a driver sets up around Ray, and undoes again: variables, handlers, loggers, temporary folders."""

import fcntl
import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from autoprune.errors import ResumableError, RunError
from autoprune.process import loggers_at

REACH_S = 10.0  # a head node that listens answers within this
SCRATCH_PREFIX = "autoprune-ray-"
_LOCK = "in-use"

# Tune's tracebacks of lost workers, and the messages of Ray's client on a lost connection.
_LOGGERS = ("ray.tune", "ray.util.client", "ray.util.client.logsclient")


def host_and_port(address: str | None) -> tuple[str, int] | None:
    """Of ``HOST:PORT`` or ``ray://HOST:PORT``; ``None`` for other addresses, such as ``auto``."""
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    return (host, int(port)) if host and port.isdigit() else None


def check_reachable(address: str | None) -> None:
    """Fails at once if nothing listens at ``HOST:PORT``; Ray itself would keep trying for minutes.

    Raises:
        OSError: no connection can be made.
    """
    if (place := host_and_port(address)) is not None:
        socket.create_connection(place, REACH_S).close()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that are not set yet, and removes them again."""
    missing = [name for name in variables if name not in os.environ]
    os.environ.update({name: variables[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def keep_sigterm() -> Iterator[None]:
    """Restores the handler of SIGTERM that the block replaces; Ray's ends the process without a message.

    A SIGTERM that comes while Ray's is in force (it calls ``sys.exit``) gets to the restored one, too.
    """
    main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        yield
    except SystemExit:
        if main:
            signal.signal(signal.SIGTERM, on_sigterm)
            signal.raise_signal(signal.SIGTERM)
        raise
    finally:
        if main:
            signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides Ray's warnings for its developers, and tracebacks of what we report in one line."""
    with warnings.catch_warnings(), loggers_at(logging.CRITICAL, *map(logging.getLogger, _LOGGERS)):
        warnings.filterwarnings("ignore", module=r"ray\b")
        yield


@contextmanager
def scratch_folder() -> Iterator[str]:
    """A folder for the files that Tune insists on; those that killed processes left are removed first.

    Yields:
        Its path. A lock file inside, held until the end, shows that the folder is in use. The kernel frees
        the lock when the process dies, so neither a reused process id nor a container that has another
        view of processes can be mistaken for an owner.
    """
    remove_abandoned(Path(tempfile.gettempdir()))
    folder = tempfile.mkdtemp(prefix=SCRATCH_PREFIX)
    try:
        with (Path(folder) / _LOCK).open("w") as lock:
            with suppress(OSError):  # a file system without locks: the folder is never taken for abandoned
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                lock.write(f"in use by process {os.getpid()} on {socket.gethostname()}\n")
                lock.flush()
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned(parent: Path) -> None:
    """Removes the scratch folders of this user whose process no longer lives."""
    for folder in parent.glob(f"{SCRATCH_PREFIX}*"):
        with suppress(OSError):
            if folder.is_symlink() or folder.stat().st_uid != os.getuid():
                continue
            with (folder / _LOCK).open() as lock:
                # Empty: its owner is between making the folder and holding the lock.
                if lock.read():
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(folder, ignore_errors=True)


def _refused(address: str | None, problem: str) -> RunError:
    """What to do about Ray's authentication; what Ray says has no token in it, and neither has this."""
    if "an authentication token" in problem or "no authentication token" in problem:
        reason = "this machine has no token for it"
    elif "not 'token'" in problem:
        reason = "it asks for a token, and RAY_AUTH_MODE is not set to `token` here"
    else:
        reason = "this machine's token is not the cluster's"
    return RunError(
        f"the Ray cluster at {address} can't be used: {reason}; set RAY_AUTH_MODE=token for every node and "
        "for this command, and copy ~/.ray/auth_token of the head node to this machine"
    )


def no_cluster(address: str | None, error: Exception) -> RunError:
    """Why the connection failed, and what to do."""
    problem = " ".join(str(error).split())
    if "ersion mismatch" in problem:
        return RunError(
            f"the cluster at {address} has other versions of Ray or Python: {problem[:200]}; "
            "install the same here"
        )
    if type(error).__name__ == "AuthenticationError":
        return _refused(address, problem)
    if "Initialization failure" in problem:
        return RunError(
            f"the head node at {address} can't start its process for a client; see ray_client_server.err "
            "in its logs, then run the same command"
        )
    if address in (None, "local"):
        return RunError(f"Ray can't be started here: {problem[:200]}; try again, or choose --engine local")
    start = "`ray start --head`"
    if str(address).startswith("ray://"):
        start += " (it serves clients at port 10001, where grpcio is installed)"
    return ResumableError(
        f"no Ray cluster at {address}: {problem[:200]}; start one with {start}, or omit --address to "
        "start Ray here"
    )
