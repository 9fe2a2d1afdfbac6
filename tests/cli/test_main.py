"""Every error is one line and an exit code; help is quick and teaches."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import typer

from autoprune.cli import main as module
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


@pytest.mark.parametrize("where", [0, 1])
def test_debug_shows_the_traceback_wherever_it_stands(autoprune: Run, failing: Any, where: int) -> None:
    failing(raiser(DataError("no such folder")))
    arguments = ["boom"]
    arguments.insert(where, "--debug")
    outcome = autoprune(*arguments)
    assert outcome.code == 2
    assert "Traceback" in outcome.err
    assert outcome.err.endswith("error: no such folder\n")


def test_an_interrupt_exits_130_and_says_how_to_go_on(
    autoprune: Run, failing: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing(raiser(KeyboardInterrupt()))
    monkeypatch.setattr(module, "RESUMABLE", {"boom"})
    outcome = autoprune("boom")
    assert outcome.code == 130
    assert outcome.err.strip().splitlines() == [
        "interrupted: finished work is kept; the same command resumes it"
    ]


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
