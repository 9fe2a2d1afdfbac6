"""Lines stay whole and unchanged whatever the width; what a program reads has nothing else in it."""

import unicodedata

import pytest
from rich import box
from rich.table import Table

from autoprune.cli.terminal import (
    PIPE_WIDTH,
    TABLE_WIDTH,
    output,
    problems,
    show_table,
    tell,
    widen_columns,
    working,
)
from autoprune.progress import say, track
from autoprune.report.tables import Entry, front

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


HOSTILE = "cat\x1b[2J\x1b]0;title\x07\r\n\x9b31mdog\x7f\x00"
ESCAPED = r"cat\x1b[2J\x1b]0;title\x07\r\n\x9b31mdog\x7f\x00"


def test_control_characters_of_names_do_not_reach_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name\n", title=HOSTILE, box=None)
    table.add_row(HOSTILE)
    with working() as console:
        console.print(HOSTILE)
        tell(console, HOSTILE)
        say(HOSTILE)
        show_table(console, table)
    problems().print(HOSTILE)
    captured = capsys.readouterr()
    assert captured.err == f"{ESCAPED}\n"
    printed, line, said, title, heading, cell = (line.strip() for line in captured.out.split("\n")[:-1])
    assert heading == r"name\n"
    assert {printed, line, said, title, cell} == {ESCAPED}
    assert not [char for char in captured.out if unicodedata.category(char) == "Cc" and char != "\n"]


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


def test_no_line_of_a_table_ends_in_blanks(capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("name", "classes", box=box.SIMPLE_HEAD, title="a title", title_justify="left")
    table.add_row("train", "cat 1")
    table.add_row("val", "")
    console = output()
    show_table(console, table)
    printed = capsys.readouterr().out.splitlines()
    console.print(table)
    padded = capsys.readouterr().out.splitlines()
    assert printed == [line.rstrip() for line in padded]
    assert printed != padded


@pytest.mark.parametrize("columns", ["0", "20", "40"])
def test_a_table_keeps_every_name_and_figure_in_a_narrow_window(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    entries = [
        Entry(f"trial {number}", "searched", 0.1 + number / 100, 2.5, 7.5, on_front=True, origin="uniform")
        for number in range(2)
    ]
    monkeypatch.setenv("COLUMNS", columns)
    widen_columns()
    show_table(output(), front(entries, Entry("dense", "dense", 0.4, 5.0, 10.0), title="front of runs/mine"))
    lines = capsys.readouterr().out.splitlines()
    for number, score in enumerate(("10.0", "11.0")):
        (row,) = (line for line in lines if f"trial {number}" in line)
        assert {"uniform", score, "2.50", "(50%)", "7.50"} <= set(row.split())


def test_a_table_is_wider_than_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    console = output()
    console.width = 30
    table = Table("name", "figure", box=None)
    table.add_row("n" * 30, "12345")
    show_table(console, table)
    assert capsys.readouterr().out.split()[-2:] == ["n" * 30, "12345"]


@pytest.mark.parametrize("columns", ["0", "20", "40", "200"])
def test_the_variable_is_raised_to_what_a_table_needs(monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    widen_columns()
    assert output().width == max(int(columns), TABLE_WIDTH)


@pytest.mark.parametrize(
    "text", ["runs/a[/b]", "[red]x", "[bold]RBC[/]", "[link=x]y[/link]", ":car:", "[@click=f]z"]
)
def test_what_users_name_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], text: str) -> None:
    table = Table("category", title=text, title_justify="left")
    table.add_row(text)
    with working() as console:
        console.print(text)
        show_table(console, table)
        say(text)
        list(track([1], text))
    problems().print(text)
    captured = capsys.readouterr()
    assert captured.out.count(text) == 4
    assert captured.err == f"{text}\n"
