import numpy as np
import pytest

from .conftest import lucky, measure, open_ledger, results, run


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
