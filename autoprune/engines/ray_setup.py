"""What a driver sets up around Ray, and takes down again."""

import logging
import os
import shutil
import signal
import socket
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from autoprune.errors import RunError

REACH_S = 10.0  # a head node that listens answers within this

# Tune's tracebacks of lost workers, and what Ray's client tells of a lost connection.
_TALKATIVE = ("ray.tune", "ray.util.client", "ray.util.client.logsclient")


def check_reachable(address: str | None) -> None:
    """Fails at once where nobody listens at ``HOST:PORT``; ray itself would go on trying for minutes.

    Raises:
        OSError: no connection can be made.
    """
    host, _, port = (address or "").rpartition("://")[2].rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), REACH_S).close()


@contextmanager
def environment(wanted: Mapping[str, str]) -> Iterator[None]:
    """Sets variables that are not set yet, and takes them out again."""
    missing = [name for name in wanted if name not in os.environ]
    os.environ.update({name: wanted[name] for name in missing})
    try:
        yield
    finally:
        for name in missing:
            os.environ.pop(name, None)


@contextmanager
def same_signals() -> Iterator[None]:
    """Puts back the handler of SIGTERM that the block replaces; Ray's ends the process with nothing said."""
    main = threading.current_thread() is threading.main_thread()
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if main:
            signal.signal(signal.SIGTERM, on_sigterm)


@contextmanager
def quiet() -> Iterator[None]:
    """Hides what Ray's developers have to say to one another, and tracebacks of what is told in one line."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"ray\b")
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


@contextmanager
def scratch() -> Iterator[str]:
    """A folder for the files that Tune insists on."""
    folder = tempfile.mkdtemp(prefix="autoprune-ray-")
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def no_cluster(address: str | None, error: Exception) -> RunError:
    """Why the connection failed, and what to do."""
    problem = " ".join(str(error).split())
    if "ersion mismatch" in problem:
        return RunError(
            f"the cluster at {address} has other versions of Ray or Python: {problem[:200]}; "
            "install the same here"
        )
    if "Initialization failure" in problem:
        return RunError(
            f"the head node at {address} can't start its process for a client; see ray_client_server.err "
            "among its logs, then run the same command"
        )
    if address in (None, "local"):
        return RunError(f"Ray can't be started here: {problem[:200]}; try again, or take --engine local")
    start = "`ray start --head`"
    if str(address).startswith("ray://"):
        start += " (it serves clients at port 10001, where grpcio is installed)"
    return RunError(
        f"no Ray cluster at {address}: {problem[:200]}; start one with {start}, or leave --address away to "
        "start Ray here"
    )
