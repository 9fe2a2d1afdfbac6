"""Trials become rows of tables, and lines that sum up how they ended."""

import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

from autoprune.data.rivals import RESAMPLES, encode_maps
from autoprune.report.entries import (
    budgets_of,
    kind_of,
    outcome_lines,
    recovered_metrics,
    trial_entries,
)
from autoprune.study.trials import origin_label


def recovered_json(value):
    """The least that `metrics.json` holds of a recovered trial."""
    settings = {"steps": 2, "batch_size": 2, "learning_rate": 0.1, "distill": 1.0, "seed": 0}
    costs = {"gflops": 1.0, "mparams": 1.0}
    return {"images": 6, "metrics": {"map": value}, "per_class": {}, "settings": settings, **costs}


def test_complete_trials_are_entries_with_their_recovered_map(make_summary, make_record, tmp_path):
    records = [
        make_record(0, "uniform", 0.40),
        make_record(1, "knapsack joint", 0.45),
        make_record(2, "sampler", 0.50),
        make_record(3, state="stopped"),
        make_record(4, same_as=2),
        make_record(5, state="failed", reason="no"),
    ]
    result = make_summary(records).result
    result = replace(result, front=(SimpleNamespace(trial=2),))
    folder = tmp_path / "recovered" / "trial-0001"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text(json.dumps(recovered_json(0.55)))
    entries, dense = trial_entries(result)
    assert [
        (entry.name, entry.kind, entry.map, entry.recovered_map, entry.on_front) for entry in entries
    ] == [
        ("trial 0", "uniform", 0.40, None, False),
        ("trial 1", "one-shot", 0.45, 0.55, False),
        ("trial 2", "searched", 0.50, None, True),
    ]
    assert entries[1].origin == "knapsack joint"
    assert (dense.kind, dense.map, dense.gflops) == ("dense", 0.6, 6.0)
    assert trial_entries(replace(result, dense={}))[1] is None


def test_trials_that_did_not_end_by_one_evaluation_at_the_top_say_so(make_summary, make_record):
    raced = make_record(1, map=0.3, state="stopped")
    raced = replace(raced, rungs=({**raced.rungs[0], "raced_images": 48},))
    records = [
        make_record(0, again=({"map": 0.4, "gflops": 3.0},)),
        raced,
        make_record(2, state="stopped"),
        make_record(3, state="failed"),
        make_record(4),
    ]
    result = make_summary(records).result
    assert {entry.name: entry.note for entry in trial_entries(result)[0]} == {
        "trial 0": "mean of 2",
        "trial 4": "",
    }
    every, _ = trial_entries(result, ("complete", "stopped"))
    assert [entry.name for entry in every] == ["trial 0", "trial 1", "trial 2", "trial 4"]
    assert every[1].note == "stopped at rung 0 by racing after 48 images (mAP estimated)"
    assert every[2].note == "stopped at rung 0"


def test_origins_have_a_kind_and_a_label():
    origins = ("uniform", "greedy fisher", "sampler")
    assert [kind_of(origin) for origin in origins] == ["uniform", "one-shot", "searched"]
    assert [origin_label(origin) for origin in origins] == ["uniform", "greedy fisher", "searched"]


def test_budgets_are_listed_once_the_largest_first(make_summary, make_record):
    records = [make_record(number, budget=budget) for number, budget in enumerate((2.0, 4.0, 2.0, None))]
    assert budgets_of(make_summary(records).result) == [4.0, 2.0]


def test_the_lines_count_trials_and_give_the_gain_at_each_budget(make_summary, make_record):
    records = [
        make_record(0, "uniform", 0.40, budget=3.5),
        make_record(1, "uniform", 0.30, budget=2.5),
        make_record(2, "global taylor", 0.45, budget=3.5),
        make_record(3, "sampler", 0.47, budget=3.5),
        make_record(4, "sampler", 0.44, budget=3.5),
        make_record(5, state="stopped"),
        *(make_record(number, state="failed", reason=f"reason {number}") for number in range(6, 10)),
    ]
    lines = outcome_lines(make_summary(records).result, "see the table")
    assert lines[0] == "10 trials: 5 complete, 1 stopped early, 4 failed"
    assert lines[1:5] == [
        *(f"  trial {n} failed: reason {n}" for n in (6, 7, 8)),
        "  and 1 more (see the table)",
    ]
    every = outcome_lines(make_summary(records).result, most=None)
    assert [line for line in every if "failed:" in line] == [
        f"  trial {n} failed: reason {n}" for n in (6, 7, 8, 9)
    ]
    (gain,) = [line for line in lines if line.startswith("proxy mAP of the search's best")]
    assert gain == (
        "proxy mAP of the search's best at 3.50 GFLOPs: 47.0 (+7.0 on uniform, +2.0 on global taylor)"
    )


def test_gains_and_the_legend_say_what_the_images_and_the_seed_leave_open(make_summary, make_record):
    random = np.random.default_rng(0)

    def kept(number, origin, value, own):
        resamples = value + random.normal(0, own, RESAMPLES)
        return make_record(
            number, origin, value, prefix_maps=(encode_maps(np.array([[value, *resamples]])),)
        ), resamples

    (uniform, theirs), (searched, ours) = kept(0, "uniform", 0.45, 0.004), kept(1, "sampler", 0.452, 0.003)
    lines = outcome_lines(make_summary([uniform, searched, make_record(2, "greedy obs", 0.45)]).result)
    error = 100 * np.std(ours - theirs, ddof=1)
    gains = f"45.2 (+0.2 ± {error:.1f} on uniform, +0.2 on greedy obs; ± paired error)"
    assert f"proxy mAP of the search's best at 3.50 GFLOPs: {gains}" in lines
    (legend,) = [line for line in lines if line.startswith("≈")]
    assert "another seed moves a trial by some 0.6 points more): trial 0" in legend


@pytest.mark.parametrize(("state", "words"), [("running", "in flight"), ("interrupted", "interrupted")])
def test_trials_without_an_end_are_counted(make_summary, make_record, state, words):
    records = [make_record(0, state=state)]
    (line,) = outcome_lines(make_summary(records).result)
    assert line == f"1 trial: 0 complete, 0 stopped early, 0 failed, 1 {words}"


def test_a_trial_that_was_re_evaluated_shows_both_figures(make_summary, make_record):
    record = make_record(7, "sampler", 0.5, again=({"map": 0.4, "gflops": 3.0},))
    lines = outcome_lines(make_summary([record]).result)
    assert (
        "top candidates re-evaluated with another seed, their means count: trial 7 (50.0 then 40.0)" in lines
    )


def test_files_that_are_not_of_a_trial_are_not_read(tmp_path):
    content = recovered_json(0.5)
    for name, text in (("trial-0003", json.dumps(content)), ("trial-copy", "{"), ("other", "{")):
        (tmp_path / "recovered" / name).mkdir(parents=True)
        (tmp_path / "recovered" / name / "metrics.json").write_text(text)
    assert recovered_metrics(tmp_path) == {3: content}


def test_trials_on_other_data_are_counted_by_change_and_compared_with_none(make_summary, make_record):
    records = [
        make_record(0, "uniform", 0.9, other_data=True),
        make_record(1, map=0.8, other_data=True),
        make_record(2, same_as=1, other_data=True),
        make_record(3, map=0.7, other_data=True),
        make_record(4, "uniform", 0.30),
        make_record(5, map=0.35),
    ]
    counts = {"validation data": {"images": 8, "boxes": 30}}
    changes = [
        {"trials": [0, 1, 2], "dense": {"map": 0.438}, "data": counts},
        {"trials": [3], "dense": {}, "data": {}},
    ]
    result = replace(make_summary(records).result, notes={"earlier_data": changes})
    lines = outcome_lines(result)
    assert lines[0] == "2 trials: 2 complete, 0 stopped early, 0 failed"
    assert "(+5.0 on uniform)" in lines[1]
    assert [line.partition(";")[0] for line in lines[-2:]] == [
        "set aside, neither counted nor ranked: 2 trials (0-1) measured on other data (8 images, 30 boxes), "
        "where the dense detector has 43.8 mAP",
        "set aside, neither counted nor ranked: 1 trial (3) measured on other data",
    ]
    assert [entry.name for entry in trial_entries(result)[0]] == ["trial 4", "trial 5"]
    assert result.set_aside == {0, 1, 2, 3}
