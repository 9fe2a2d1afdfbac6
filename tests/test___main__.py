"""The entry of the program: it starts by both its names, and a signal while it starts is one line and 130."""

import os
import signal
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.usefixtures("foreground")
ROOT = Path(__file__).parent.parent
MODULE, FUNCTION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"][
    "autoprune"
].split(":")
ENTRIES = {
    "python -m": ["-m", "autoprune"],
    "console script": ["-c", f"import sys; from {MODULE} import {FUNCTION}; sys.exit({FUNCTION}())"],
}
WAITS = """
import sys
print("importing", flush=True)
sys.stdin.read()
"""


def start(entry: str, *arguments: str, first: Path = ROOT, **options: Any) -> "subprocess.Popen[str]":
    """Starts the program; modules in ``first`` go before all others."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(first), str(ROOT)])}
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    command = [sys.executable, *ENTRIES[entry], *arguments]
    return subprocess.Popen(command, env=environment, text=True, **{**pipes, **options})


@pytest.mark.parametrize("entry", ENTRIES)
def test_it_runs_a_command_and_gives_its_exit_code(entry: str) -> None:
    out, err = start(entry, "--version").communicate()
    assert (out.split()[0], err) == ("autoprune", "")
    refused = start(entry, "serach")
    _, err = refused.communicate()
    assert refused.returncode == 2
    assert err.startswith("error: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("library", ["typer", "pydantic"])
def test_a_signal_while_libraries_are_imported_is_one_line(
    entry: str, number: signal.Signals, library: str, tmp_path: Path
) -> None:
    (tmp_path / f"{library}.py").write_text(WAITS)
    process = start(entry, "schema", first=tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(number)
    out, err = process.communicate()
    assert (process.returncode, out, err) == (130, "", "interrupted: nothing was changed\n")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(("command", "code"), [("schema", 0), ("serach", 2)])
def test_a_signal_after_all_is_done_leaves_the_exit_code(
    number: signal.Signals, command: str, code: int
) -> None:
    program = f"""
import os, sys
from {MODULE} import {FUNCTION}
sys.argv = ["autoprune", "{command}"]
{FUNCTION}()
os.kill(os.getpid(), {number})
sys.stdin.read()
"""
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, input="", **options)
    assert done.returncode == code
    assert (done.stdout.startswith("{"), done.stderr.startswith("error: ")) == (code == 0, code == 2)


def test_a_signal_that_is_ignored_stays_so(tmp_path: Path) -> None:
    """As of a command in the background of a script, which Ctrl-C is not meant for."""
    (tmp_path / "typer.py").write_text(WAITS + "import os; os._exit(0)")
    process = start(
        "python -m", first=tmp_path, preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN)
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "importing\n"
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 0
