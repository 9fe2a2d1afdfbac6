"""Progress of long work: a rich bar with an ETA on a terminal, plain lines elsewhere, nothing in a library.

Only the command line calls `show`; the layers below call `track` and `say`, whether or not anything is shown.
"""

import shlex
import time
from collections.abc import Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Self, TypeVar

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

T = TypeVar("T")
PLAIN_INTERVAL_S = 10.0
STATUS_INTERVAL_S = 60.0

_console: ContextVar["Console | None"] = ContextVar("console", default=None)
_below_bar: ContextVar["Console | None"] = ContextVar("below_bar", default=None)  # hidden by a bar


@contextmanager
def show(console: "Console | None") -> Iterator[None]:
    """Sends progress to ``console`` inside the block; ``None`` silences it."""
    with _showing(console, below_bar=None):
        yield


@contextmanager
def _showing(console: "Console | None", below_bar: "Console | None") -> Iterator[None]:
    tokens = _console.set(console), _below_bar.set(below_bar)
    try:
        yield
    finally:
        _console.reset(tokens[0])
        _below_bar.reset(tokens[1])


def say(text: str, markup: bool = False, above_bar: bool = False) -> None:
    """Prints one line where progress is shown.

    Args:
        text: the line.
        markup: whether it is rich markup; else it is printed verbatim.
        above_bar: print it also while a bar shows the work, which silences other lines of that work.
    """
    console = _console.get() or (_below_bar.get() if above_bar else None)
    if console is not None:
        console.print(text, highlight=False, markup=markup)


def command_line(*words: object) -> str:
    """A command of autoprune as it can be pasted into a shell, whatever its paths hold.

    Args:
        *words: the command's name and its arguments.
    """
    return shlex.join(["autoprune", *map(str, words)])


def count_of(count: int, what: str, several: str | None = None) -> str:
    """A number of things: ``1 trial``, ``2 trials``; ``several`` is the plural where it is no s."""
    return f"{count} {what if count == 1 else several or what + 's'}"


class StatusDisplay:
    """Lines that stay below all other output on a terminal; elsewhere one line per minute.

    It only stores the lines given last, so that rich's thread can redraw them at any time.
    """

    def __init__(self) -> None:
        self._lines: Sequence[str] = ()
        self._printed = time.monotonic()
        self._live: Live | None = None

    def __enter__(self) -> Self:
        """Starts the display on a terminal."""
        if (console := _console.get()) is not None and console.is_terminal:
            from rich.live import Live

            self._live = Live(get_renderable=self._render, console=console, transient=True)
            self._live.start()
        return self

    def __exit__(self, *problem: object) -> None:
        """Removes the lines from the terminal."""
        if self._live is not None:
            self._live.stop()

    def show(self, lines: Sequence[str]) -> None:
        """Replaces the lines."""
        self._lines = lines
        if self._live is None and time.monotonic() - self._printed >= STATUS_INTERVAL_S:
            self._printed = time.monotonic()
            say("; ".join(" ".join(line.split()) for line in lines))

    def _render(self) -> "Text":
        from rich.text import Text

        return Text("\n".join(self._lines))


def track(items: Iterable[T], description: str, total: int | None = None, done: int = 0) -> Iterator[T]:
    """Yields ``items`` and shows how many of them are done.

    Args:
        items: what to iterate over.
        description: the work in a few words, such as ``"recovery"``.
        total: number of items, if ``items`` has no length; with those that are ``done``.
        done: items of earlier work, which are counted and not timed.
    """
    console = _console.get()
    total = len(items) if total is None and isinstance(items, Sized) else total
    if console is None:
        yield from items
    elif console.is_terminal:
        yield from _bar(items, description, total, done, console)
    else:
        yield from _lines(items, description, total, done, console)


def _bar(
    items: Iterable[T], description: str, total: int | None, done: int, console: "Console"
) -> Iterator[T]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar, _showing(None, below_bar=console):
        task = bar.add_task(description, total=total, completed=done)
        for item in items:
            yield item
            bar.advance(task)


def _lines(
    items: Iterable[T], description: str, total: int | None, earlier: int, console: "Console"
) -> Iterator[T]:
    start = last = time.monotonic()
    for done, item in enumerate(items, earlier + 1):
        yield item
        now = time.monotonic()
        if now - last >= PLAIN_INTERVAL_S:
            last = now
            remaining = f", {(now - start) / (done - earlier) * (total - done):.0f} s left" if total else ""
            console.print(f"{description}: {done}/{total or '?'}{remaining}", highlight=False, markup=False)
