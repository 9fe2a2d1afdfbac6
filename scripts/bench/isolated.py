"""Benchmark cases in processes of their own: one thread, with limits on time and memory.

Needs the standard library only: the interpreters of peers run it too.
"""

import json
import os
import resource
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_MARK = "RESULT"  # begins the line of standard output that holds a case's result
_LONGEST = 110


def run_isolated(command: Sequence[str], seconds: float) -> dict[str, Any]:
    """Runs one case and returns what it passed to `print_result`.

    Args:
        command: the process to start.
        seconds: its time limit.

    Returns:
        The result; ``{"works": False, "error": ...}`` if the process failed or exceeded the limit.
    """
    root = str(Path(__file__).parents[2])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, env=environment)
    except subprocess.TimeoutExpired:
        return {"works": False, "error": f"not done after {seconds} s"}
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            return dict(json.loads(line.removeprefix(_MARK)))
    last = (done.stderr.strip().splitlines() or ["killed"])[-1]
    return {"works": False, "error": f"exit {done.returncode}: {last}"[:_LONGEST]}


def print_result(result: Mapping[str, Any]) -> None:
    """Prints the result of a case for `run_isolated`."""
    print(_MARK + json.dumps(result))


def limit_memory(gibibytes: int) -> None:
    """Limits the memory of this process."""
    resource.setrlimit(resource.RLIMIT_DATA, (gibibytes << 30, gibibytes << 30))


def first_line(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"[:_LONGEST]
