"""Lines stay whole and unchanged whatever the width; what a program reads has nothing else in it."""

import pytest
from rich.table import Table

from autoprune.cli.terminal import PIPE_WIDTH, output, problems, tell, working
from autoprune.progress import say, track

LONG = "/data/" + "x" * 300 + "/[bold]:car:.yaml"


def test_paths_are_one_line_and_verbatim(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    tell(output(), LONG)
    problems().print(LONG)
    captured = capsys.readouterr()
    assert captured.out == f"{LONG}\n"
    assert captured.err == f"{LONG}\n"


def test_in_a_pipe_tables_are_wide(capsys: pytest.CaptureFixture[str]) -> None:
    cell = "y" * (PIPE_WIDTH - 20)
    table = Table("name")
    table.add_row(cell)
    output().print(table)
    assert cell in capsys.readouterr().out


def test_only_the_first_process_of_torchrun_prints(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        output().print(f"rank {rank}")
    assert capsys.readouterr().out == "rank 0\n"


def test_while_a_program_reads_all_else_goes_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with working(quiet=True) as console:
        console.print("from the command")
        say("from the work")
        print("from the user's detector")
        list(track([1, 2], "counting"))
    print("{}")
    captured = capsys.readouterr()
    assert captured.out == "{}\n"
    for line in ("from the command", "from the work", "from the user's detector"):
        assert line in captured.err


def test_otherwise_progress_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    with working() as console:
        console.print("from the command")
        say("from the work")
    captured = capsys.readouterr()
    assert captured.out == "from the command\nfrom the work\n"
    assert captured.err == ""
