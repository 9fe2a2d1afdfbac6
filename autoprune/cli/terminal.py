"""The terminal: where commands print, at a width that keeps tables whole in a pipe and on 80 columns."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.segment import Segment, Segments
from rich.table import Table
from rich.text import Text

from autoprune import progress
from autoprune.process import stdout_to_stderr

PIPE_WIDTH = 240
TABLE_WIDTH = 80
"""The least that tables need: a narrower one would lose names and figures."""
_ESCAPES = {code: repr(chr(code))[1:-1] for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) != "\t"}


def widen_columns() -> None:
    """Raises the variable COLUMNS to `TABLE_WIDTH` where it says less; at 0, rich would print nothing."""
    if (columns := os.environ.get("COLUMNS", "")).isdecimal() and int(columns) < TABLE_WIDTH:
        os.environ["COLUMNS"] = str(TABLE_WIDTH)


def output() -> Console:
    """The console of standard output; wide enough for every table where that is no terminal.

    Of several processes that `torchrun` started, only the first prints.
    """
    silent = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0"
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return _console(width=PIPE_WIDTH if piped else None, soft_wrap=piped, quiet=silent)


def problems() -> Console:
    """The console of standard error, for messages of one line."""
    return _console(stderr=True, soft_wrap=True)


class _Terminal(Console):
    """Escapes control characters, which a path or a class name may hold: they would steer the terminal.

    Also line breaks: what is meant to have several lines is rich's `Text`, which is printed as it is.
    """

    def render_str(self, text: str, **options: Any) -> Text:
        """The text of what is printed, be it a line or the cell of a table."""
        return super().render_str(text.translate(_ESCAPES), **options)


def _console(**options: Any) -> Console:
    """A console that prints text as it is: no markup from `[b]`, no emoji from `:b:` in a path or a name."""
    return _Terminal(**options, highlight=False, markup=False, emoji=False)


def tell(console: Console, line: str) -> None:
    """Prints a line with paths or commands as one line whatever the width, so that it can be copied."""
    console.print(line, soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Prints a table; a terminal narrower than `TABLE_WIDTH` wraps its lines."""
    options = console.options.update(width=max(console.width, TABLE_WIDTH))
    segments: list[Segment] = []
    for line in console.render_lines(table, options, pad=False):
        while line and not line[-1].text.strip(" "):  # padding of the last column
            line.pop()
        if line:
            line[-1] = line[-1]._replace(text=line[-1].text.rstrip(" "))
        segments += [*line, Segment.line()]
    console.print(Segments(segments), soft_wrap=True)


class StoppedError(Exception):
    """Ctrl-C or SIGTERM ended the work, which says in one line what is kept.

    An exception of its own, as typer keeps nothing of a `KeyboardInterrupt`.
    """


@contextmanager
def working(quiet: bool = False) -> Iterator[Console]:
    """Yields the console of standard output, with progress shown on it.

    Args:
        quiet: standard output is for a program (``--json``), which the command prints after the block. Inside
            it everything goes to standard error: progress, and what a user's detector prints at any time.

    Raises:
        StoppedError: the work inside the block was interrupted, and says what is kept.
    """
    try:
        if not quiet:
            console = output()
            with progress.show(console):
                yield console
            return
        with stdout_to_stderr(), progress.show(problems()):
            yield problems()
    except KeyboardInterrupt as interrupt:
        if not interrupt.args:
            raise
        raise StoppedError(str(interrupt)) from interrupt
