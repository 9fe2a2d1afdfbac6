import dataclasses
import math

import numpy as np

from autoprune.data.rivals import RACED, RESAMPLES, encode_maps
from autoprune.study.records import Record
from autoprune.study.rivals import rivals
from autoprune.study.rungs import is_promoted

from ..conftest import ledger_settings
from .conftest import measure, open_ledger

MAPS = encode_maps(np.full((2, 1 + RESAMPLES), 0.5))
SETTINGS = dataclasses.replace(ledger_settings(trials=9, rungs=2), racing=True)


def record(number, maps, gflops=1.0, budget=1.0, state="complete", **more):
    rungs = tuple({"map": value, "gflops": gflops} for value in maps)
    return Record(number, state, "sampler", budget, {}, rungs, prefix_maps=(MAPS,) * len(rungs), **more)


def test_at_the_top_it_is_the_front_of_the_budget():
    records = [
        record(0, (0.4, 0.5), 0.99),
        record(1, (0.4, 0.6), 1.0),
        record(2, (0.4, 0.55), 1.0),  # trial 1 beats it
        record(3, (0.4, 0.9), 2.0, budget=2.0),
        record(4, (0.4, 0.9), state="stopped"),
        record(5, (0.4, 0.9), other_data=True),
        record(6, (0.4, 0.9), repeat_of=1),
    ]
    top = rivals(records, 1.0, SETTINGS, promoted=False)[1]
    assert {(rival.trial, rival.map, rival.costs["gflops"]) for rival in top} == {
        (0, 0.5, 0.99),
        (1, 0.6, 1.0),
    }


def test_to_be_promoted_it_is_the_best_trial_that_would_not_be():
    values = [0.3, 0.7, 0.5, 0.6, 0.4, 0.65]
    records = [record(number, (value,), state="stopped") for number, value in enumerate(values)]
    (rival,) = rivals(records, 1.0, SETTINGS, promoted=False)[0]
    points = [(value, 1.0) for value in values]
    stays = [
        value
        for value in values
        if not is_promoted((value, 1.0), points, ["maximize", "minimize"], SETTINGS.rung_keep)
    ]
    assert rival.map == max(stays)
    assert rival.costs == {}
    assert rivals(records, 1.0, SETTINGS, promoted=True)[0] == ()
    assert rivals(records, None, SETTINGS, promoted=False)[0] == ()  # of other costs mAP does not decide
    slow = dataclasses.replace(SETTINGS, objectives=("map", "gflops", "latency_ms"))
    assert rivals(records, 1.0, slow, promoted=False)[0] == ()


def test_trials_of_earlier_versions_are_no_rivals():
    old = dataclasses.replace(record(0, (0.4, 0.5)), prefix_maps=(None, None))
    assert rivals([old], 1.0, SETTINGS, promoted=False) == ((), ())


def test_a_trial_that_lost_a_race_is_stopped_and_not_on_the_front(tmp_path):
    ledger = open_ledger(tmp_path, trials=3, rungs=1, confirm=3, racing=True)
    first = ledger.ask()
    assert first.rivals == ((),)
    ledger.report(first.number, 0, {**measure(first), "gflops": 1.0, "maps": MAPS})
    second = ledger.ask()
    (rival,) = second.rivals_at(0)
    assert (rival.trial, rival.maps) == (first.number, MAPS)
    assert not ledger.report(second.number, 0, {**measure(second), "map": 0.9, RACED: 64})
    third = ledger.ask()
    ledger.report(third.number, 0, {**measure(third), "gflops": 2.0, "map": 0.1, "maps": MAPS})
    records = {each.number: each for each in ledger.finished()}
    assert records[second.number].state == "stopped"
    assert records[second.number].raced == 64
    assert records[first.number].raced is None
    assert second.number not in [each.number for each in ledger.front()]
    again = ledger.ask()
    assert again.rivals == ()
    assert {each.repeat_of for each in ledger.records() if each.repeat_of is not None} <= {
        first.number,
        third.number,
    }


def test_where_most_have_no_map_those_that_lost_a_race_are_compared_with_none(tmp_path):
    """One was given up while mAP still told trials apart; the losses of the others rank later ones."""
    ledger = open_ledger(tmp_path, trials=7, rungs=2, rung_keep=0.3, racing=True)
    seen = []
    for loss in [5.0, 4.0, None, 3.0, 2.0, 9.0, 1.0]:  # the first two are warm starts
        candidate = ledger.ask()
        metrics = {"map": 0.01, "gflops": 1.0, **({RACED: 32} if loss is None else {"loss": loss})}
        promoted = ledger.report(candidate.number, 0, metrics)
        if loss is None:
            assert not promoted
            continue
        better, seats = sum(other < loss for other in seen), math.ceil(0.3 * (len(seen) + 1))
        assert promoted == (len(seen) < 3 or better < seats), loss
        seen.append(loss)
    assert [r.ranked_by[0] for r in ledger.records()] == [None, None, None, "loss", "loss", "loss", "loss"]
