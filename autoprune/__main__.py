"""The entry of the program, `autoprune` and `python -m autoprune`.

Importing the commands takes a second. Until they can end themselves, a signal ends the process at once:
nothing has begun, and an exception in the middle of an import would be a traceback, or lost in C code.
"""

import os
import signal
import sys
from typing import Any

INTERRUPTED = 130
STARTING = b"interrupted: nothing was changed\n"
STDERR = 2


def main() -> int:
    """Runs the command of this process's arguments.

    Returns:
        The exit code; see `autoprune.cli.main.main`.
    """
    before = {
        number: signal.signal(number, _stop)
        for number in (signal.SIGINT, signal.SIGTERM)
        if signal.getsignal(number) is not signal.SIG_IGN  # as in the background of a script
    }
    from autoprune.cli.main import main as run

    try:
        for number, handler in before.items():
            signal.signal(number, handler)
        code = run()
        for number in before:  # all is done and written: what is left is the end of the interpreter
            signal.signal(number, lambda *_: os._exit(code))
        return code
    except KeyboardInterrupt:  # before the command began, or after it ended
        print("interrupted", file=sys.stderr)
        return INTERRUPTED


def _stop(number: int, frame: Any) -> None:
    try:
        os.write(STDERR, STARTING)
    finally:  # standard error may be closed
        os._exit(INTERRUPTED)


if __name__ == "__main__":
    sys.exit(main())
