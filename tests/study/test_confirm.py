from collections import Counter

import numpy as np
import pytest

from autoprune.data.rivals import MAPS, RESAMPLES, encode_maps

from .conftest import FakePlan, lucky, measure, open_ledger, results, run


def best_of(ledger):
    return max(ledger.finished(), key=lambda record: record.metrics["map"])


def test_none_leads_on_one_measurement(tmp_path):
    ledger = run(open_ledger(tmp_path, trials=12, confirm=20), measure=lucky)
    assert ledger.done
    records = ledger.records()
    repeats = [record for record in records if record.repeat_of is not None]
    assert len(ledger.finished()) == 12
    assert all(r.rungs for r in repeats)
    # By brute force: again and again the first of all means, until it is one of two measurements.
    maps = {r.number: [r.rungs[-1]["map"]] for r in records if r.counts}
    second = {r.number: measure(r)["map"] for r in records if r.counts}
    order = []
    while len(maps[leader := max(maps, key=lambda number: (np.mean(maps[number]), -number))]) < 2:
        order.append(leader)
        maps[leader].append(second[leader])
    assert [record.repeat_of for record in repeats] == order
    assert len(order) > 1  # else luck decided nothing here
    assert best_of(ledger).number == leader
    assert best_of(ledger).metrics["map"] == pytest.approx(np.mean(maps[leader]))
    assert best_of(ledger).maps == pytest.approx(maps[leader])
    assert [record.number for record in ledger.front()] == [leader]


def test_no_more_are_re_evaluated_than_requested(tmp_path):
    ledger = run(open_ledger(tmp_path, trials=12, confirm=1), measure=lucky)
    assert len(ledger.records()) == 13
    assert run(open_ledger(tmp_path, trials=12, confirm=1), measure=lucky).done
    assert len(ledger.records()) == 13


def test_repeats_survive_a_kill(tmp_path):
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    whole = run(open_ledger(tmp_path / "whole", trials=5, rungs=2, confirm=9), measure=lucky)
    for _ in range(20):  # each session finishes one trial and dies with the next in flight
        ledger = run(open_ledger(tmp_path / "killed", trials=5, rungs=2, confirm=9), 1, measure=lucky)
        if ledger.done:
            break
    assert ledger.done
    repeats = [
        [dict(r.widths) for r in each.records() if r.repeat_of is not None] for each in (whole, ledger)
    ]
    assert results(ledger) == results(whole)
    assert len(repeats[0]) > 1
    assert repeats[0] == repeats[1]


def test_repeats_wait_for_trials_in_flight(tmp_path):
    waiting = open_ledger(tmp_path, trials=2, confirm=1)
    first, second = waiting.ask(), waiting.ask()
    waiting.report(first.number, 0, lucky(first))
    assert waiting.ask() is None  # the second may come to lead
    assert not waiting.done
    waiting.report(second.number, 0, lucky(second))
    assert waiting.ask().repeat == 1
    assert not waiting.done


def test_a_repeat_that_fails_is_not_tried_for_ever(tmp_path):
    ledger = open_ledger(tmp_path, trials=1, confirm=5)
    first = ledger.ask()
    ledger.report(first.number, 0, measure(first))
    ledger.fail(ledger.ask().number, "out of memory")
    assert ledger.ask() is None
    assert ledger.done
    assert [r.maps for r in ledger.finished()] == [[measure(first)["map"]]]


def budgets_of_repeats(ledger):
    """For each repeat the budget of the trial that it re-evaluates, and that trial's number."""
    budgets = {record.number: record.budget for record in ledger.records()}
    return [(budgets[r.repeat_of], r.repeat_of) for r in ledger.records() if r.repeat_of is not None]


def test_no_budget_takes_the_re_evaluations_of_another(tmp_path):
    """The policies of each budget are all as good as its best, those of the dearest one better."""
    plan = FakePlan(budgets=(20.0, 10.0, 5.0), warm_starts=())
    ledger = open_ledger(tmp_path, trials=24, confirm=2, sampler="random", plan=plan)
    maps, looks = {20.0: 0.6, 10.0: 0.5, 5.0: 0.4}, np.full((1, 1 + RESAMPLES), 0.5)

    def equal(candidate, rung=0):
        budget = next(r.budget for r in ledger.records() if r.number == candidate.number)
        return {"map": maps[budget], "gflops": budget, MAPS: encode_maps(looks)}

    run(ledger, measure=equal)
    counts = Counter(record.budget for record in ledger.finished())
    assert min(counts.values()) > 2  # else nothing would be left to take
    assert Counter(budget for budget, _ in budgets_of_repeats(ledger)) == {20.0: 2, 10.0: 2, 5.0: 2}


def test_without_a_budget_what_a_cheaper_trial_beats_is_not_re_evaluated(tmp_path):
    """The others have the mAP of trial 0, and cost more than trial 1, which leads by far."""
    ledger = open_ledger(tmp_path, trials=8, confirm=9, sampler="random", objectives=("map", "gflops"))
    looks = np.full((1, 1 + RESAMPLES), 0.5)
    points = [(0.5, 1.0), (0.8, 2.0), *((0.5, 3.0 + number) for number in range(6))]
    order = []

    def beaten(candidate, rung=0):
        if candidate.widths not in order:
            order.append(candidate.widths)
        score, cost = points[order.index(candidate.widths)]
        return {"map": score, "gflops": cost, MAPS: encode_maps(looks)}

    run(ledger, measure=beaten)
    assert {number for _, number in budgets_of_repeats(ledger)} == {0, 1}


def test_the_leader_of_an_extended_search_is_re_evaluated_too(tmp_path):
    """The first search has spent all its re-evaluations; the lucky trials of the second need some again."""
    first = run(open_ledger(tmp_path, trials=4, confirm=1), measure=lucky)
    assert len(budgets_of_repeats(first)) == 1

    def luckier(candidate, rung=0):
        metrics = lucky(candidate, rung)
        return metrics if candidate.repeat else {**metrics, "map": metrics["map"] + 0.2}

    extended = run(open_ledger(tmp_path, trials=6, confirm=1), measure=luckier)
    assert extended.done
    new = max(extended.finished()[4:], key=lambda record: record.rungs[-1]["map"])
    assert [number for _, number in budgets_of_repeats(extended)][1:] == [new.number]
    assert len(new.maps) == 2
    assert run(open_ledger(tmp_path, trials=6, confirm=1), measure=luckier).records() == extended.records()
