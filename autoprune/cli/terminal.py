"""The terminal: where commands print, at a width that keeps tables whole in a pipe and on 80 columns."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from autoprune import progress

PIPE_WIDTH = 240


def output() -> Console:
    """The console of standard output; as wide as it takes where that is no terminal.

    Of several processes that `torchrun` started, the first alone prints.
    """
    silent = "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK") != "0"
    piped = not sys.stdout.isatty() and "COLUMNS" not in os.environ
    return Console(width=PIPE_WIDTH if piped else None, soft_wrap=piped, highlight=False, quiet=silent)


def problems() -> Console:
    """The console of standard error, for messages of one line."""
    return Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def tell(console: Console, line: str) -> None:
    """Prints a line with paths or commands as one line whatever the width, so that it can be copied."""
    console.print(line, markup=False, soft_wrap=True)


@contextmanager
def working(quiet: bool = False) -> Iterator[Console]:
    """Yields the console of standard output, with progress shown on it, or on standard error if ``quiet``.

    Args:
        quiet: standard output is for a program (``--json``), so it holds nothing but the result.
    """
    console = output()
    with progress.show(Console(stderr=True, highlight=False) if quiet else console):
        yield console
