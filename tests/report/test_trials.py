"""`trials.csv` holds what the Optuna study does."""

import csv
import shutil

import pytest

from autoprune.cli.main import main
from autoprune.report.trials import write_trials
from autoprune.run.results import load_result


def test_the_csv_has_a_row_for_every_trial(run, study_trials, tmp_path, capsys):
    assert main(["report", str(run), "--to", str(tmp_path / "page.html"), "--csv", "--png"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "front.png", "trials.csv"}
    assert str(tmp_path / "trials.csv") in capsys.readouterr().out
    rows = {
        int(row["trial"]): row for row in csv.DictReader((tmp_path / "trials.csv").read_text().splitlines())
    }
    trials, means = study_trials
    assert rows.keys() == trials.keys()
    assert {row["measured"] for row in rows.values() if row["state"] == "complete"} == {"1", "2"}
    for number, notes in trials.items():
        assert float(rows[number]["map"]) == pytest.approx(means.get(number, notes["rung_0"]["map"]))
        assert float(rows[number]["map_rung_0"]) == notes["rung_0"]["map"]
        for name, width in notes["widths"].items():
            assert int(rows[number][f"width:{name}"]) == width


def test_trials_that_failed_or_were_repeated_keep_their_columns(make_summary, make_record, tmp_path):
    again = ({"map": 0.3, "gflops": 3.0},)
    records = [
        make_record(0, "uniform", 0.5, again=again),
        make_record(1, state="failed", reason="out of memory, twice"),
        make_record(2, repeat_of=0),
    ]
    summary = make_summary(records, recovered={0: {"metrics": {"map": 0.55}}})
    write_trials(tmp_path / "trials.csv", summary)
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    assert [row["trial"] for row in rows] == ["0", "1"]
    assert float(rows[0]["map"]) == pytest.approx(0.4)
    assert rows[0]["measured"] == "2"
    assert float(rows[0]["recovered_map"]) == 0.55
    assert rows[1]["reason"] == "out of memory, twice"
    assert rows[1]["recovered_map"] == ""
    assert (rows[0]["width:a"], rows[0]["width:b"]) == ("8", "16")


def test_the_input_size_is_a_column_where_it_was_searched(sized_run, tmp_path, capsys):
    assert main(["report", str(sized_run), "--to", str(tmp_path / "page.html"), "--csv"]) == 0
    rows = list(csv.DictReader((tmp_path / "trials.csv").read_text().splitlines()))
    records = {record.number: record for record in load_result(sized_run).records}
    assert [int(row["input_px"]) for row in rows] == [records[int(row["trial"])].pixels for row in rows]
    assert not any("input size" in name for name in rows[0])
    assert "input, px" in (tmp_path / "page.html").read_text()
    capsys.readouterr()
    copied = shutil.copytree(sized_run, tmp_path / "run")
    assert main(["front", str(copied), "--all"]) == 0
    shown = capsys.readouterr().out
    assert "uniform at 96 px" in shown or "dense at 96 px" in shown
    assert "px" in shown.partition("●")[0].split()  # in the heading, above the first policy of the front
