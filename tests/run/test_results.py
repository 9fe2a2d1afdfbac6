"""The results of a search are what its files say, and what is said of them."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from autoprune.config import make_config
from autoprune.data.rivals import RESAMPLES, encode_maps
from autoprune.errors import RunError
from autoprune.files import read_yaml
from autoprune.report.run_summary import read_run_summary
from autoprune.run.directory import RunDirectory
from autoprune.run.results import (
    FrontPoint,
    SearchResult,
    indistinct,
    load_result,
    recorded_notes,
    study_name,
)
from autoprune.study.records import Record


def result(maps, error, budgets=None, state="complete"):
    budgets = budgets or [1.5] * len(maps)
    records = tuple(
        Record(n, state, "sampler", budget, {}, ({"map": value},))
        for n, (value, budget) in enumerate(zip(maps, budgets, strict=True))
    )
    dense = {"map": 0.5} if error is None else {"map": 0.5, "map_error": error}
    return SearchResult(Path("run"), (), records, dense, {})


def test_results_are_printed_in_a_line_each():
    point = FrontPoint(3, "sampler", {"map": 0.25, "gflops": 1.5}, Path("run/policies/trial-0003.yaml"))
    policy = "run/policies/trial-0003.yaml"
    assert repr(point) == f"<FrontPoint: trial 3 (sampler), map 0.25, gflops 1.5; {policy}>"
    few = result([0.1, 0.2], 0.01)
    assert repr(few) == "<SearchResult of run: 2 trials, 0 on the front, best none>"
    assert repr(replace(few, front=(point,))).endswith("1 on the front, best trial 3>")


@pytest.mark.parametrize(
    ("maps", "counts"), [([0.30, 0.31, 0.305], "3 of 3"), ([0.30, 0.1, 0.31, 0.2, 0.305], "3 of 5")]
)
def test_trials_within_the_standard_error_of_the_best_are_said_to_be_indistinct(maps, counts):
    said = indistinct(result(maps, 0.021))
    assert f"at 1.50 GFLOPs {counts} complete trials lie within the standard error" in said
    assert "images, 2.1, of the best: too few images to say which is best" in said
    assert "\n" not in said


def with_maps(maps, own):
    """A result whose trials kept their mAP on resamples that all share but for ``own`` noise."""
    shared = np.random.default_rng(0).normal(0, 0.02, RESAMPLES)
    read = result(maps, 0.02)
    kept = []
    for record in read.records:
        noise = shared + np.random.default_rng(record.number + 1).normal(0, own, RESAMPLES)
        value = record.metrics["map"]
        text = encode_maps(np.array([[value, *(value + noise)]]))
        kept.append(replace(record, prefix_maps=(text,)))
    return replace(read, records=tuple(kept))


def test_where_trials_kept_their_resamples_only_those_count_that_pairs_can_not_tell_apart():
    maps = [0.30, 0.31, 0.305]
    assert indistinct(result(maps, 0.02)) is not None
    assert indistinct(with_maps(maps, own=0.0005)) is None  # their differences are known to 0.07 points
    close = with_maps(maps, own=0.01)
    assert close.like_best == {0, 2}
    said = indistinct(close)
    assert "these images can't tell trial 1, the best of 3 complete trials, from 2 others" in said
    assert "\n" not in said


@pytest.mark.parametrize(
    "distinct",
    [
        result([0.30, 0.35, 0.305], 0.02),  # far enough apart
        result([0.30, 0.31], 0.02),  # two are not many
        result([0.30, 0.31, 0.32], None),  # an older run
        result([0.30, 0.31, 0.32], 0.05, state="stopped"),
        result([0.30, 0.31, 0.2, 0.4, 0.3], 0.05, budgets=[2, 2, 1, 1, 1]),
        result([0.30, 0.31, 0.32], 0.05, budgets=[None] * 3),  # GFLOPs are free
    ],
)
def test_otherwise_nothing_is_said(distinct):
    assert indistinct(distinct) is None


def test_a_run_is_read_as_its_files_say(checked_run):
    read = load_result(checked_run)
    rows = list(csv.DictReader((checked_run / "front.csv").read_text().splitlines()))
    assert [point.trial for point in read.front] == [int(row["trial"]) for row in rows]
    for point, row in zip(read.front, rows, strict=True):
        content = read_yaml(checked_run / "policies" / f"trial-{point.trial:04d}.yaml")
        assert point.metrics == content["metrics"]
        assert (point.origin, repr(point.metrics["map"])) == (row["origin"], row["map"])
    best = max(rows, key=lambda row: float(row["map"]))
    assert read.best.trial == int(best["trial"])
    notes = {}
    for line in (checked_run / "study.journal").read_text().splitlines():
        notes |= json.loads(line).get("user_attr", {}) if json.loads(line)["op_code"] == 2 else {}
    assert (read.dense, read.seconds) == (notes["dense"], notes["seconds"])
    assert read.failed == ()


def test_a_failure_and_the_overhead():
    failed = Record(1, "failed", "sampler", None, {}, (), reason="no")
    copy = Record(2, "failed", "sampler", None, {}, (), same_as=1)
    seconds = {"wall": 10.0, "training": 6.0, "evaluation": 3.0, "other": 1.0}
    read = SearchResult(Path("run"), (), (failed, copy), {}, seconds)
    assert read.failed == (failed,)
    assert read.overhead == pytest.approx(0.1)
    assert read.best is None
    assert SearchResult(Path("run"), (), (), {}, {}).overhead == 0


def test_what_is_no_run_directory_is_refused(tmp_path):
    with pytest.raises(RunError, match=r"is not a run directory: it has no config\.yaml"):
        load_result(tmp_path)


@pytest.mark.parametrize("damage", [Path.unlink, lambda file: file.write_bytes(b"")])
def test_results_whose_study_is_lost_are_not_taken_for_a_run_that_has_not_begun(
    checked_run, tmp_path, damage
):
    run = Path(shutil.copytree(checked_run, tmp_path / "run"))
    damage(run / "study.journal")
    for read in (load_result, read_run_summary):
        with pytest.raises(RunError, match=r"run holds results of a search \(front\.csv\), but its study is"):
            read(run)


@pytest.mark.parametrize("kept", ["policies", "recovered"])
def test_a_journal_that_was_cut_is_told_by_the_results_of_trials_that_it_lost(checked_run, tmp_path, kept):
    """A last line that is not whole is what a kill leaves; a trial that has results was finished before."""
    path = shutil.copytree(checked_run, tmp_path / "run")
    journal, content = path / "study.journal", (path / "study.journal").read_bytes()
    for name in {"policies", "recovered"} - {kept}:
        shutil.rmtree(path / name)
    journal.write_bytes(content + b'{"op_code"')
    numbers = {int(each.stem.split("-")[1]) for each in (path / kept).iterdir()}
    assert {record.number for record in load_result(path).records} >= numbers

    journal.write_bytes(content[: len(content) // 4])
    (path / kept).rename(path / f"{kept}-away")
    left = {record.number for record in load_result(path).records if record.state == "complete"}
    (path / f"{kept}-away").rename(path / kept)
    assert (first := min(numbers - left)) > 0
    run = RunDirectory(path)
    for read in (load_result, lambda _: recorded_notes(run.config(), run)):
        with pytest.raises(RunError) as refused:
            read(path)
        said = str(refused.value)
        assert said.startswith(f"{journal} has lost finished trials: that of {path}/{kept}/trial-{first:04d}")
        assert "restore it from a copy" in said


def test_a_study_in_a_database_has_the_name_of_its_run(tmp_path):
    own = make_config(out=tmp_path / "one")
    shared = make_config(out=tmp_path / "one", storage="sqlite://")
    assert (study_name(own), study_name(shared)) == ("autoprune", "one")
