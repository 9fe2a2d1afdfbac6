"""Keeps standard output for results: what foreign code prints there goes to standard error."""

import contextlib
import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

STDOUT, STDERR = 1, 2


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what is printed to standard output inside the block to standard error.

    Both levels are redirected: ``sys.stdout``, and the file descriptor below it, to which C code writes and
    loggers that were made earlier. It holds for the whole process: other threads print there too meanwhile.
    """
    with contextlib.redirect_stdout(sys.stderr), _descriptor_to_stderr():
        yield


@contextmanager
def _descriptor_to_stderr() -> Iterator[None]:
    try:
        saved = os.dup(STDOUT)
    except OSError:  # a process without standard output
        yield
        return
    try:
        _flush()
        os.dup2(STDERR, STDOUT)
        yield
    finally:
        _flush()
        os.dup2(saved, STDOUT)
        os.close(saved)


def _flush() -> None:
    """Empties the buffers above the descriptor: Python's, and that of the C library."""
    for stream in (sys.__stdout__, sys.stderr):
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
                stream.flush()
    with contextlib.suppress(OSError, AttributeError):  # a C library that can't be asked
        ctypes.CDLL(None).fflush(None)
