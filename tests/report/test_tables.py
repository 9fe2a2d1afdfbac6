"""Tables show the figures they were given, in points and fractions, on 80 columns and in a pipe."""

import io
import re
from dataclasses import replace

import pytest
from rich.console import Console
from rich.table import Table

from autoprune.report.tables import Entry, comparison, cost, front, points

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


def test_costs_are_beside_their_fraction_of_dense() -> None:
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


def test_what_qualifies_a_map_and_the_size_of_the_dense_detector_stand_in_the_row() -> None:
    entries = [
        Entry("trial 1", "searched", 0.35, 3.6, 8.0, note="mean of 2", pixels=96),
        Entry("trial 2", "searched", 0.33, 1.2, 7.0, pixels=64),
    ]
    table = front(entries, replace(DENSE, pixels=128, latency_ms=None))
    assert row(table, "trial 1").rstrip().endswith("mean of 2")
    sizes = {"trial 1": "searched  96", "trial 2": "searched  64", "dense": "dense  128"}
    for name, size in sizes.items():
        assert size in re.sub(" {2,}", "  ", row(table, name))
    assert "note" not in "".join(lines(front(entries[1:], DENSE)))


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


def test_recovered_detectors_have_a_map_without_and_one_with_training() -> None:
    sibling = Entry("smaller sibling", "sibling", 0.44, 2.5, 6.6)
    untrained = Entry("33% uniform", "uniform", 0.40, 2.4, 6.0)
    recovered = Entry("33% searched", "searched", 0.41, 2.4, 6.0, recovered_map=0.43)
    dense = replace(DENSE, spread_ms=None)
    table = comparison([dense, untrained, recovered, sibling])
    cells = {name: row(table, name).split() for name in ("dense", "smaller", "33% uniform", "33% searched")}
    assert cells["dense"][1:3] == ["-", "46.3"]
    assert cells["smaller"][2:5] == ["-", "44.0", "(-2.3)"]
    assert cells["33% uniform"][2:5] == ["40.0", "(-6.3)", "-"]
    assert cells["33% searched"][2:6] == ["41.0", "(-5.3)", "43.0", "(-3.3)"]
    assert "untrained" in "".join(lines(table))
    assert "untrained" not in "".join(lines(comparison([DENSE, untrained])))


def test_the_front_shows_a_smaller_sibling_beside_the_trials() -> None:
    sibling = Entry("smaller sibling", "sibling", 0.44, 2.5, 6.6, origin="trained from scratch")
    trials = [Entry("trial 0", "uniform", 0.30, 3.7, 9.0), Entry("trial 7", "searched", 0.35, 1.2, 8.0)]
    body = [line.strip() for line in lines(front([*trials, sibling], DENSE))]
    order = [line.split("  ")[0] for line in body if re.match(r"trial \d|dense|smaller", line)]
    assert order == ["trial 7", "smaller sibling", "trial 0", "dense"]
    assert "trained from" in next(line for line in body if line.startswith("smaller sibling"))


def test_costs_have_about_three_digits() -> None:
    assert [cost(value) for value in (0.2954, 7.386, 151.54, None)] == ["0.295", "7.39", "151.5", "-"]
