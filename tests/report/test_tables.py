"""Tables say the figures they were given, in points and shares, on 80 columns and in a pipe."""

import io
import re

import pytest
from rich.console import Console
from rich.table import Table

from autoprune.report.tables import Entry, comparison, front, points

DENSE = Entry("dense", "dense", 0.4627, 7.426, 19.2, 31.24, (30.1, 33.9))
UNIFORM = Entry("uniform", "uniform", 0.3841, 3.713, 9.9, 20.0, (19.0, 22.0))
SEARCHED = Entry("searched", "searched", 0.4702, 2.2278, 4.8, 15.0, (14.0, 16.0))


def lines(table: Table, width: int = 80) -> list[str]:
    console = Console(width=width, file=io.StringIO())
    console.print(table)
    return console.file.getvalue().splitlines()  # type: ignore[attr-defined]


def row(table: Table, name: str) -> str:
    return next(line for line in lines(table) if line.strip().startswith(name))


def test_map_is_in_points_with_the_change_against_dense() -> None:
    table = comparison([DENSE, UNIFORM, SEARCHED])
    assert re.search(r"46\.3\s", row(table, "dense"))
    assert "38.4 (-7.9)" in row(table, "uniform")
    assert "47.0 (+0.8)" in row(table, "searched")


def test_costs_stand_beside_their_share_of_dense() -> None:
    text = row(comparison([DENSE, UNIFORM, SEARCHED]), "searched")
    assert "2.23 (30%)" in text
    assert "4.80 (25%)" in text
    assert "15.0 (14.0-16.0)" in text


def test_a_detector_that_was_not_measured_shows_a_dash() -> None:
    assert points(None) == "-"
    table = comparison([Entry("dense", "dense", None, 7.0), Entry("pruned", "searched", 0.5, 3.5)])
    assert re.search(r"pruned\s+50\.0\s+3\.50 \(50%\)\s+-$", row(table, "pruned").rstrip())


def test_the_front_is_ordered_by_cost_and_marked_and_ends_with_dense() -> None:
    entries = [
        Entry("trial 0", "uniform", 0.30, 3.7, 9.0),
        Entry("trial 7", "searched", 0.35, 3.6, 8.0, on_front=True, recovered_map=0.451),
        Entry("trial 2", "one-shot", 0.33, 1.2, 7.0, on_front=True),
    ]
    body = [line.strip() for line in lines(front(entries, DENSE)) if re.match(r"\s*(trial \d|dense)", line)]
    assert [line.split("  ")[0] for line in body] == ["trial 2", "trial 7", "trial 0", "dense"]
    assert ["●" in line for line in body] == [True, True, False, False]
    assert body[1].split()[-1] == "45.1"


@pytest.mark.parametrize("width", [80, 240])
def test_nothing_is_cut_off(width: int) -> None:
    entries = [
        Entry(f"trial {number}", "searched", 0.123, 123.45, 33.21, 123.4, (1, 2), 0.5, True)
        for number in (1, 999)
    ]
    dense = Entry("dense", "dense", 0.5, 246.91, 66.4, 250.0, (1, 2))
    for table in (front(entries, dense), comparison([dense, *entries])):
        text = "\n".join(lines(table, width))
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        for figure in ("12.3", "123.4", "33.21"):
            assert figure in text
