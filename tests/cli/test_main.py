"""Every error is one line and an exit code; help is quick and teaches."""

import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from autoprune.cli import main as module
from autoprune.cli import terminal
from autoprune.errors import AutopruneError, DataError, TrainingError

Run = Callable[..., Any]


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Replaces the commands by one, `boom`, that does what it is told."""

    def install(action: Callable[[], None]) -> None:
        app = typer.Typer()
        app.callback()(module.root)
        app.command("boom")(lambda: action())
        monkeypatch.setattr(module, "app", app)

    return install


def raiser(error: BaseException) -> Callable[[], None]:
    def action() -> None:
        raise error

    return action


@pytest.mark.parametrize(
    ("error", "code"),
    [(DataError("no such\n folder"), 2), (TrainingError("loss is nan"), 1), (AutopruneError("x"), 1)],
)
def test_our_errors_are_one_line_with_their_exit_code(
    autoprune: Run, failing: Any, error: AutopruneError, code: int
) -> None:
    failing(raiser(error))
    outcome = autoprune("boom")
    assert outcome.code == code
    assert outcome.err == f"error: {' '.join(str(error).split())}\n"
    assert outcome.out == ""


def test_an_unexpected_error_says_how_to_see_its_traceback(autoprune: Run, failing: Any) -> None:
    failing(raiser(ZeroDivisionError("division\nby zero")))
    outcome = autoprune("boom")
    assert outcome.code == 1
    assert outcome.err == ("error: ZeroDivisionError: division by zero; run with --debug for the traceback\n")


def test_a_library_that_cannot_be_imported_leads_to_the_doctor(autoprune: Run, failing: Any) -> None:
    failing(raiser(ImportError("libfoo.so: cannot open shared object file")))
    outcome = autoprune("boom")
    assert outcome.code == 1
    assert outcome.err == (
        "error: a library can't be imported: libfoo.so: cannot open shared object file; `autoprune doctor` "
        "checks them, --debug shows it\n"
    )


@pytest.mark.parametrize("where", [0, 1])
def test_debug_shows_the_traceback_wherever_it_stands(autoprune: Run, failing: Any, where: int) -> None:
    failing(raiser(DataError("no such folder")))
    arguments = ["boom"]
    arguments.insert(where, "--debug")
    outcome = autoprune(*arguments)
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.endswith("error: no such folder\n")


@pytest.mark.parametrize("end", [raiser(KeyboardInterrupt()), partial(signal.raise_signal, signal.SIGTERM)])
@pytest.mark.parametrize(
    ("kind", "left"),
    [
        ("RESUMABLE", "what is finished is kept; the same command resumes from there"),
        ("WRITERS", "no file is half-written; the same command makes what is missing"),
        ("PRINTERS", "nothing was changed"),
    ],
)
def test_an_interrupt_exits_130_and_says_how_to_go_on(
    autoprune: Run,
    failing: Any,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[], None],
    kind: str,
    left: str,
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    failing(end)
    monkeypatch.setattr(module, kind, {"boom"})
    outcome = autoprune("boom")
    assert outcome.code == 130
    assert outcome.err.strip().splitlines() == [f"interrupted: {left}"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_work_that_says_what_an_interrupt_left_has_the_only_line(autoprune: Run, failing: Any) -> None:
    def work() -> None:
        with terminal.working():
            raise KeyboardInterrupt("nothing is kept")

    failing(work)
    outcome = autoprune("boom")
    assert (outcome.code, outcome.err) == (130, "interrupted: nothing is kept\n")


def test_help_that_nobody_reads_to_its_end_is_silent() -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "autoprune", "recover", "--help"]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_usage_errors_are_one_line_and_name_the_help(autoprune: Run) -> None:
    assert autoprune("schema", "--nonsense").is_refusal("--nonsense", "`autoprune schema --help`")
    assert autoprune("serach").is_refusal("serach", "`autoprune --help`")


def test_users_see_our_warnings_only(autoprune: Run, failing: Any) -> None:
    def warn() -> None:
        warnings.warn_explicit("for developers", DeprecationWarning, "f.py", 1, "autoprune.detectors")
        warnings.warn_explicit("of a library", UserWarning, "f.py", 1, "torch.nn")
        warnings.warn_explicit("other dense\nweights", UserWarning, "f.py", 1, "autoprune.policy")

    failing(warn)
    outcome = autoprune("boom")
    assert outcome.code == 0
    assert outcome.err == "warning: other dense weights\n"


def test_version(autoprune: Run) -> None:
    from autoprune import __version__

    assert autoprune("--version").out == f"autoprune {__version__}\n"


def test_no_arguments_show_the_commands_and_where_to_start(autoprune: Run) -> None:
    outcome = autoprune()
    assert outcome.code == 0
    assert "autoprune demo" in outcome.out
    for command in module.COMMANDS:
        assert command in outcome.out


@pytest.mark.parametrize("command", sorted(module.COMMANDS))
def test_each_command_explains_itself_with_an_example(autoprune: Run, command: str) -> None:
    outcome = autoprune(command, "--help")
    assert outcome.code == 0
    assert f"Example: autoprune {command}" in " ".join(outcome.out.split())
    assert not re.search(r"\w…", outcome.out)  # a word too long for its column


def test_a_detector_that_calls_exit_is_a_failure(autoprune: Run, failing: Any) -> None:
    failing(raiser(SystemExit(0)))
    outcome = autoprune("boom")
    assert outcome.code == 1
    assert outcome.err == "error: SystemExit: 0; run with --debug for the traceback\n"


@pytest.mark.parametrize(
    ("arguments", "fragments"),
    [
        (["report", "run", "--to", ""], ["--to", "empty"]),
        (["report", "run", "--to="], ["--to", "empty"]),
        (["search", "--out", ""], ["--out", "empty"]),
        (["report", ""], ["empty"]),
        *(
            ([command, *flags, os.fsdecode(b"V\xe9")], [r"b'V\xe9'", "not UTF-8", "rename"])
            for command, *flags in (
                ("search", "--out"),
                ("train", "--out"),
                ("demo", "--out"),
                ("doctor", "--out"),
                ("space", "--to"),
                ("apply", "p.yaml", "--to"),
                ("export", "run", "--to"),
                ("report", "run", "--to"),
                ("recover",),
            )
        ),
        (["report", "a\0b"], [r"a\x00b", "NUL"]),
        (["report", "x" * 300], ["xxx", "too long", "check the path"]),
    ],
)
def test_what_can_be_no_path_is_refused(autoprune: Run, arguments: list[str], fragments: list[str]) -> None:
    assert autoprune(*arguments).is_refusal(*fragments)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("CPU out of memory"), RuntimeError("x: can't allocate memory: y")]
)
def test_a_lack_of_memory_names_what_to_lower(autoprune: Run, failing: Any, error: Exception) -> None:
    failing(raiser(error))
    outcome = autoprune("boom")
    assert outcome.code == 1
    assert outcome.err == "error: out of memory; take fewer images at once (--batch, --batch-size)\n"


@pytest.mark.parametrize("columns", ["0", "20"])
def test_a_narrow_window_shows_all_of_the_help(
    autoprune: Run, monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert "--policy" in autoprune("schema", "--help").out


COMMAND = """
import os, sys, typer
from autoprune.cli import main as module
from autoprune.cli import terminal
def work():
    with open(sys.argv[2], "w") as file:
        for number in range(3):
            print("→ step", number, flush=True)
            os.write(1, b"by C\\n")
        file.write("done")
module.app = typer.Typer()
module.app.callback()(module.root)
module.app.command(sys.argv[1])(work)
sys.exit(module.main([sys.argv[1]]))
"""
WARNING = "warning: standard output can't be written ({}); the work goes on without it\n"
BROKEN, FULL = "Broken pipe", "No space left on device"


@pytest.mark.parametrize(
    ("command", "state", "code", "err"),
    [
        ("search", "broken", 0, WARNING.format(BROKEN)),
        ("search", "full", 0, WARNING.format(FULL)),
        ("search", "closed", 0, ""),
        ("front", "broken", 141, ""),
        ("front", "full", 1, f"error: standard output can't be written: {FULL}\n"),
        ("front", "closed", 0, ""),
    ],
)
def test_the_work_is_done_whatever_happens_to_standard_output(
    tmp_path: Path, command: str, state: str, code: int, err: str
) -> None:
    read, write = os.pipe()
    os.close(read)
    to = {"broken": "", "full": "> /dev/full", "closed": ">&-"}[state]
    words = [sys.executable, "-c", COMMAND, command, str(tmp_path / "file")]
    done = subprocess.run(
        ["sh", "-c", f'exec "$@" {to}', "sh", *words],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (code, err)
    assert (tmp_path / "file").read_text() == "done"


def test_characters_that_the_terminal_lacks_are_escaped(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, "front", str(tmp_path / "file")],
        env={**os.environ, "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\u2192 step 0" in done.stdout.splitlines()


SLOW = """
import sys, threading
told = threading.Event()
class Standard:
    def write(self, text):
        if text.strip():
            told.set()
        return sys.__stderr__.write(text)
    flush = sys.__stderr__.flush
sys.stderr = Standard()
told.wait(60)
"""


def test_an_import_that_takes_long_is_told_of(tmp_path: Path) -> None:
    (tmp_path / "slow_library.py").write_text(SLOW)
    code = "import sys; from autoprune.cli import main as module; "
    code += "module.SLOW_IMPORTS, module.SLOW_S = ('slow_library',), 0.05; "
    code += "import typer; module.app = typer.Typer(); module.app.callback()(module.root); "
    code += "module.app.command('search')(lambda: __import__('slow_library') and None); "
    code += "sys.exit(module.main(['search']))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "importing slow_library …\n")
