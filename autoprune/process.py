"""The process: its standard streams, whose loss does not end the work, its loggers, signals that end it."""

import _thread
import contextlib
import ctypes
import io
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any, TextIO

STDOUT, STDERR = 1, 2
AGAIN_S = 0.05
"""Until a signal that came at a bad moment is sent again."""
_EXTENSION_IMPORTS = (ExtensionFileLoader.create_module.__code__, ExtensionFileLoader.exec_module.__code__)


class _Descriptor(io.FileIO):
    """A standard stream that drops what it is given from its first failure on, and says why it failed."""

    def __init__(self, number: int, on_loss: Callable[[OSError], None]) -> None:
        super().__init__(number, "w", closefd=False)
        self._on_loss = on_loss

    def write(self, data: Any) -> int:
        try:
            return super().write(data)
        except OSError as error:
            _discard(self.fileno())
            self._on_loss(error)
            return memoryview(data).nbytes


@contextmanager
def lasting_streams(on_loss: Callable[[OSError], None]) -> Iterator[None]:
    """Keeps the process's standard streams usable inside the block, whatever happens to their other end.

    A stream that was closed before the start, whose reader goes away or whose disk is full, is as if it were
    /dev/null. A character that the stream's encoding lacks is written as an escape. Streams that were
    replaced, as in a notebook, are left alone.

    Args:
        on_loss: called when standard output is lost, with the reason.
    """
    before = sys.stdout, sys.stderr
    if sys.stdout is sys.__stdout__:
        sys.stdout = _lasting(sys.stdout, STDOUT, on_loss)
    if sys.stderr is sys.__stderr__:
        sys.stderr = _lasting(sys.stderr, STDERR, lambda error: None)
    try:
        yield
    finally:
        _flush(sys.stdout, sys.stderr)
        sys.stdout, sys.stderr = before


def _lasting(stream: Any, number: int, on_loss: Callable[[OSError], None]) -> TextIO:
    if stream is None:  # closed: the next file that is opened would get its number, and what C code prints
        _discard(number)
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(number, on_loss)),
        encoding=getattr(stream, "encoding", "utf-8"),
        errors="backslashreplace",
        line_buffering=getattr(stream, "line_buffering", True) or getattr(stream, "write_through", False),
    )


def _discard(number: int) -> None:
    """Points a descriptor to /dev/null."""
    null = os.open(os.devnull, os.O_WRONLY)
    if null != number:
        os.dup2(null, number)
        os.close(null)


@contextmanager
def loggers_at(level: int, *loggers: logging.Logger) -> Iterator[None]:
    """Sets the level of loggers inside the block."""
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, old in zip(loggers, before, strict=True):
            logger.setLevel(old)


@contextmanager
def stdout_to_stderr() -> Iterator[None]:
    """Sends what is printed to standard output inside the block to standard error.

    Both levels are redirected: ``sys.stdout``, and the file descriptor below it, to which C code writes and
    loggers that were made earlier. It holds for the whole process: other threads print there too meanwhile.
    """
    streams = (sys.stdout, sys.__stdout__, sys.stderr)
    with contextlib.redirect_stdout(sys.stderr), _descriptor_to_stderr(streams):
        yield


@contextmanager
def _descriptor_to_stderr(streams: Sequence[TextIO | None]) -> Iterator[None]:
    try:
        saved = os.dup(STDOUT)
    except OSError:  # a process without standard output
        yield
        return
    try:
        _flush(*streams)
        os.dup2(STDERR, STDOUT)
        yield
    finally:
        _flush(*streams)
        os.dup2(saved, STDOUT)
        os.close(saved)


def _flush(*streams: TextIO | None) -> None:
    """Empties the buffers above the descriptors: Python's, and that of the C library."""
    for stream in streams:
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # closed, or its reader has gone
                stream.flush()
    with contextlib.suppress(OSError, AttributeError):  # a C library that can't be asked
        ctypes.CDLL(None).fflush(None)


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """Raises `KeyboardInterrupt` at SIGTERM inside the block: schedulers and `kill` do what Ctrl-C does.

    Both wait for the end of an extension's import, and come again where Python drops what they raise. It does
    nothing outside the main thread.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    inside = True

    def interrupt(number: int, frame: FrameType | None) -> None:
        # A library's C++ code may import Python modules while it is initialized. An exception that comes from
        # there either ends the process by std::terminate, as in torch, or is dropped. So the signal is sent
        # again until it arrives elsewhere. By a bare thread: a handler must not wait for a lock.
        if _extension_is_imported(frame):
            _thread.start_new_thread(send_again, (number,))
        else:
            raise KeyboardInterrupt

    def send_again(number: int) -> None:
        time.sleep(AGAIN_S)
        if inside:  # the handler of before, Ray's perhaps, may end the process
            os.kill(os.getpid(), number)

    # What a handler raises (Ray's, SystemExit) in a callback of C, as after each fork, Python drops.
    def on_dropped(dropped: Any) -> None:
        if isinstance(dropped.exc_value, KeyboardInterrupt | SystemExit):
            _thread.start_new_thread(send_again, (signal.SIGTERM,))
        else:
            on_unraisable(dropped)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is ignored
        numbers.append(signal.SIGINT)
    old = {number: signal.signal(number, interrupt) for number in numbers}
    on_unraisable, sys.unraisablehook = sys.unraisablehook, on_dropped
    try:
        yield
    finally:
        inside = False
        sys.unraisablehook = on_unraisable
        for number, handler in old.items():
            signal.signal(number, handler)


def _extension_is_imported(frame: FrameType | None) -> bool:
    """Whether ``frame`` runs within the import of a module in C."""
    while frame is not None:
        if frame.f_code in _EXTENSION_IMPORTS:
            return True
        frame = frame.f_back
    return False
