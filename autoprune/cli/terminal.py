"""The terminal: where commands print, at a width that keeps tables whole in a pipe and on 80 columns."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from autoprune import progress
from autoprune.streams import stdout_to_stderr

PIPE_WIDTH = 240


def output() -> Console:
    """The console of standard output; wide enough for every table where that is no terminal.

    Of several processes that `torchrun` started, only the first prints.
    """
    silent = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0"
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    width = PIPE_WIDTH if piped else None
    # without emoji=False, rich would replace `:b:` in a path or a detector's name
    return Console(width=width, soft_wrap=piped, highlight=False, emoji=False, quiet=silent)


def problems() -> Console:
    """The console of standard error, for messages of one line."""
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)


def tell(console: Console, line: str) -> None:
    """Prints a line with paths or commands as one line whatever the width, so that it can be copied."""
    console.print(line, markup=False, soft_wrap=True)


@contextmanager
def working(quiet: bool = False) -> Iterator[Console]:
    """Yields the console of standard output, with progress shown on it.

    Args:
        quiet: standard output is for a program (``--json``), which the command prints after the block. Inside
            it everything goes to standard error: progress, and what a user's detector prints at any time.
    """
    if not quiet:
        console = output()
        with progress.show(console):
            yield console
        return
    with stdout_to_stderr(), progress.show(problems()):
        yield problems()
