"""Records against what Optuna itself reads of a study; a study of the version before this one."""

import csv
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from optuna.storages.journal import JournalFileBackend

from autoprune.errors import RunError
from autoprune.study.ledger import Ledger
from autoprune.study.records import Record, directions, front_of, objective_values, read_records
from autoprune.study.storage import load_study

from ..conftest import FakePlan, ledger_settings

EARLIER = Path(__file__).parent.parent / "earlier_version"


def record(number=0, state="complete", rungs=(), **fields):
    return Record(number, state, "sampler", None, {}, tuple(rungs), **fields)


def test_metrics_are_those_of_the_highest_rung():
    assert record(rungs=[{"map": 0.1}, {"map": 0.2}]).metrics == {"map": 0.2}
    assert record(state="failed").metrics == {}


def test_only_the_map_is_averaged_over_repeats():
    top = {"map": 0.4, "map50": 0.6, "gflops": 10.0, "training_s": 5.0}
    again = {"map": 0.3, "map50": 0.5, "gflops": 10.0, "training_s": 7.0}
    repeated = record(rungs=[{"map": 0.1}, top], again=(again,))
    assert repeated.metrics == pytest.approx({**top, "map": 0.35, "map50": 0.55})
    assert repeated.maps == [0.4, 0.3]


def test_a_trial_below_the_top_rung_has_no_map_of_it():
    assert record(state="stopped", rungs=[{"map": 0.1}]).maps == []


def test_seconds_are_summed_over_the_rungs():
    timed = record(rungs=[{"map": 0.1, "training_s": 2.0}, {"map": 0.2, "training_s": 3.0, "other_s": 1.0}])
    assert (timed.seconds("training"), timed.seconds("other"), timed.seconds("evaluation")) == (5.0, 1.0, 0)


def test_copies_and_repeats_do_not_count():
    assert record().counts
    assert not record(same_as=0).counts
    assert not record(repeat_of=0).counts


def test_the_map_is_better_the_higher_and_costs_the_lower():
    assert directions(("map", "gflops", "latency_ms")) == ["maximize", "minimize", "minimize"]


def test_a_budget_stands_for_the_gflops_and_another_score_for_the_map():
    metrics = {"map": 0.4, "gflops": 9.7, "loss": 1.5}
    assert objective_values(metrics, None, ("map", "gflops")) == [0.4, 9.7]
    assert objective_values(metrics, 10.0, ("gflops", "map")) == [10.0, 0.4]
    assert objective_values(metrics, 10.0, ("map", "gflops"), "loss") == [-1.5, 10.0]


points = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), max_size=15)


@given(points)
def test_the_front_holds_what_no_other_dominates_cheapest_first(points):
    records = [record(n, rungs=[{"map": m, "gflops": g}]) for n, (m, g) in enumerate(points)]
    others = [replace(record(99, rungs=[{"map": 9, "gflops": 0}]), **given) for given in EXCLUDED]
    expected = [
        (g, n)
        for n, (m, g) in enumerate(points)
        if not any(x >= m and y <= g and (x, y) != (m, g) for x, y in points)
        and (m, g) not in points[:n]  # equal ones are one point
    ]
    front = front_of([*records, *others], ("map", "gflops"))
    assert [(r.metrics["gflops"], r.number) for r in front] == sorted(expected)


def test_costs_that_differ_by_less_than_a_thousandth_are_one_point():
    costs = {0: (0.50, 10.0), 1: (0.51, 10.005), 2: (0.53, 10.02), 3: (0.53, 10.021), 4: (0.52, 10.0201)}
    records = [record(n, rungs=[{"map": m, "gflops": g}]) for n, (m, g) in costs.items()]
    assert [each.number for each in front_of(records, ("map", "gflops"))] == [1, 2]


EXCLUDED = ({"state": "stopped"}, {"state": "failed"}, {"same_as": 1}, {"repeat_of": 1})


def test_finished_records_are_read_once(make_ledger):
    ledger = make_ledger(trials=3, rungs=1)
    first, second = ledger.ask(), ledger.ask()
    ledger.report(first.number, 0, {"map": 0.5, "gflops": 1.0})
    finished = {}
    before = read_records(ledger.study, finished)
    assert set(finished) == {first.number}
    ledger.report(second.number, 0, {"map": 0.4, "gflops": 1.0})
    after = read_records(ledger.study, finished)
    assert after[0] is before[0]
    assert (before[1].state, after[1].state) == ("running", "complete")
    assert after == read_records(ledger.study)


DAMAGE = {
    "no number": ({"rung_0": {"map": "x", "gflops": 1.0}}, "map"),
    "null": ({"rung_0": {"map": 0.5, "gflops": None}}, "gflops"),
    "NaN": ({"rung_0": {"map": math.nan, "gflops": 1.0}}, "map"),
    "text of no maps": ({"maps_0": "!!!!"}, "maps"),
    "a part of the maps": ({"maps_0": "AAAA"}, "maps"),
    "maps that are a number": ({"maps_0": 5}, "maps"),
}


@pytest.mark.parametrize(("attributes", "name"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_study_is_refused_with_the_trial_and_the_metric(make_ledger, attributes, name):
    ledger = make_ledger(trials=3, rungs=1)
    for _ in range(2):
        ledger.report(ledger.ask().number, 0, {"map": 0.5, "gflops": 1.0})
    trials = ledger.study.get_trials()
    trials[1].user_attrs = {**trials[1].user_attrs, **attributes}
    study = SimpleNamespace(user_attrs=ledger.study.user_attrs, get_trials=lambda deepcopy: trials)
    with pytest.raises(RunError, match=rf"trial 1 has no valid {name} at rung 0"):
        read_records(study)


# a study of the version before


@pytest.fixture(params=["finished", "killed"])
def earlier(request, tmp_path):
    """A copy of an earlier version's study: the path of its journal, and its run's folder."""
    journal = tmp_path / "study.journal"
    shutil.copy(EARLIER / request.param / "study.journal", journal)
    return journal, EARLIER / request.param


def raw_trials(journal):
    storage = optuna.storages.JournalStorage(JournalFileBackend(str(journal)))
    return optuna.load_study(storage=storage, study_name="autoprune").get_trials()


STATES = {"COMPLETE": "complete", "PRUNED": "stopped", "FAIL": "failed", "RUNNING": "running"}


def test_a_study_of_the_version_before_is_read_in_full(earlier):
    journal, run = earlier
    study = load_study(journal, "autoprune")
    records = {r.number: r for r in read_records(study)}
    kept = [t for t in raw_trials(journal) if t.state.name != "WAITING" and not t.user_attrs.get("requeued")]
    assert list(records) == [trial.number for trial in kept]
    assert len(kept) >= 4
    repeats = {t.user_attrs["repeat_of"]: t.user_attrs for t in kept if "repeat_of" in t.user_attrs}
    for trial in kept:
        read, raw = records[trial.number], trial.user_attrs
        assert read.state == STATES[trial.state.name]
        assert (read.origin, read.widths) == (raw.get("origin", "sampler"), raw["widths"])
        assert read.budget == study.user_attrs["budgets"][trial.params["budget"]]
        assert list(read.rungs) == [raw[name] for name in ("rung_0", "rung_1") if name in raw]
        assert list(read.ranked_by) == [raw.get(f"ranked_by_{rung}") for rung in range(len(read.rungs))]
        assert (read.repeat_of, read.same_as) == (raw.get("repeat_of"), raw.get("same_as"))
        assert [dict(m) for m in read.again] == [
            repeats[trial.number]["rung_1"] for _ in range(trial.number in repeats)
        ]
    with (run / "front.csv").open() as file:
        rows = {int(row["trial"]): float(row["map"]) for row in csv.DictReader(file)}
    front = front_of(list(records.values()), ("map", "gflops"))
    assert {r.number: r.metrics["map"] for r in front} == pytest.approx(rows)


def test_a_search_of_the_version_before_is_resumed(earlier):
    journal, _ = earlier
    before = read_records(load_study(journal, "autoprune"))
    notes = load_study(journal, "autoprune").user_attrs
    running = [r for r in before if r.state == "running"]
    identity = {k: v for k, v in notes["identity"].items() if k not in ("format", "variables")}
    variables = tuple(notes["identity"]["variables"].split(", "))
    plan = FakePlan(variables=variables, budgets=tuple(notes["budgets"]), identity=identity)
    counted = sum(r.counts for r in before)
    settings = ledger_settings(trials=counted + 1, rungs=2, confirm=0, sampler="random")
    ledger = Ledger(journal, "autoprune", plan, settings)
    assert ledger.finished() == [r for r in before if r.counts and r.state != "running"]
    assert ledger.study.metric_names == ["mAP (fraction)", "GFLOPs"]
    if running:  # the killed driver's trial is the next
        candidate = ledger.ask()
        assert candidate.widths == running[0].widths
        assert ledger.report(candidate.number, 0, {"map": 0.01, "gflops": 0.002}) in (True, False)
