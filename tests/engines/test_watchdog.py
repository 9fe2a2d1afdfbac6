from types import SimpleNamespace

import pytest

from autoprune.engines.watchdog import MIN_LIMIT_S, WorkerWatchdog


@pytest.fixture
def clock():
    """`clock.now` is set by the test."""
    return SimpleNamespace(now=0.0)


@pytest.fixture
def watchdog(clock):
    return WorkerWatchdog(lambda: clock.now)


def test_a_rung_is_limited_from_the_third_answer_by_ten_times_its_median(clock, watchdog):
    for trial, seconds in (("a", 100), ("b", 30)):
        watchdog.begin(trial)
        clock.now += seconds
        watchdog.answer(trial)
        watchdog.forget(trial)
        assert watchdog.limit_s(0) is None
    watchdog.begin("hung")
    watchdog.begin("c")
    clock.now += 40
    watchdog.answer("c")
    assert watchdog.limit_s(0) == 10 * 40  # the median of 30, 40, 100
    assert watchdog.limit_s(1) is None  # nobody has come through rung 1
    clock.now += 360
    assert watchdog.overdue() == []
    clock.now += 1
    assert watchdog.overdue() == [("hung", "no answer at rung 0 for 401 s (the median is 40 s)")]
    assert watchdog.overdue() == []  # returned once
    watchdog.answer("hung")  # after all, before it is killed
    assert watchdog.limit_s(0) == 10 * 40
    clock.now += 1000
    assert [overdue.trial_id for overdue in watchdog.overdue()] == []


def test_short_rungs_have_a_minute(clock, watchdog):
    for _ in range(3):
        watchdog.begin("a")
        clock.now += 0.1
        watchdog.answer("a")
    assert watchdog.limit_s(0) == MIN_LIMIT_S


def test_each_rung_has_a_limit_of_its_own(clock, watchdog):
    for _ in range(3):
        watchdog.begin("a")
        for seconds in (10, 100):
            clock.now += seconds
            watchdog.answer("a")
        watchdog.forget("a")
    assert (watchdog.limit_s(0), watchdog.limit_s(1)) == (100, 1000)
    watchdog.begin("slow")
    clock.now += 50
    watchdog.answer("slow")
    clock.now += 900  # too long for rung 0, but it is at rung 1
    assert watchdog.overdue() == []
    clock.now += 101
    assert [trial for trial, _ in watchdog.overdue()] == ["slow"]


def test_a_trial_that_ended_is_never_overdue(clock, watchdog):
    for _ in range(3):
        watchdog.begin("a")
        watchdog.answer("a")
    watchdog.begin("ended")
    watchdog.forget("ended")
    watchdog.forget("a")
    clock.now += 1e6
    assert watchdog.overdue() == []
