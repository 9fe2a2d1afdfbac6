"""The parts of a search's wall time, on a clock that the tests set."""

import pytest

from autoprune.search import wall_time as module
from autoprune.search.wall_time import PARTS, WallTime
from autoprune.study.records import Record


class Clock:
    def __init__(self):
        self.now = 1000.0

    def perf_counter(self):
        return self.now

    def pass_s(self, seconds):
        self.now += seconds


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module, "time", made)
    return made


def trial(training_s, evaluation_s):
    rung = {"map": 0.1, "training_s": training_s, "evaluation_s": evaluation_s, "other_s": 0.5}
    return Record(0, "complete", "sampler", None, {}, (rung,))


def session(clock, workers=1, trials_s=20.0):
    """Loads for 3 s, scores for 2 s, measures the dense detector for 1 s, then runs trials."""
    wall_time = WallTime()
    for part, seconds in (("loading", 3.0), ("importance", 2.0), ("dense_evaluation", 1.0)):
        with wall_time.spend(part):
            clock.pass_s(seconds)
    wall_time.begin_trials(workers)
    clock.pass_s(trials_s)
    return wall_time


def test_the_parts_add_up_to_the_wall_time(clock):
    seconds = session(clock).seconds([trial(9.0, 4.0), trial(2.0, 1.0)])
    assert seconds == {
        "wall": 26.0,
        "training": 11.0,
        "evaluation": 6.0,  # 5 of the trials, 1 of the dense detector
        "importance": 2.0,
        "loading": 3.0,
        "dense_evaluation": 1.0,
        "other": 4.0,
    }
    assert sum(seconds[name] for name in PARTS) == seconds["wall"]


def test_the_time_of_each_worker_counts_while_trials_run(clock):
    seconds = session(clock, workers=3).seconds([])
    assert seconds["wall"] == 6.0 + 3 * 20.0
    assert seconds["other"] == 60.0


def test_a_resumed_search_adds_to_what_the_sessions_before_spent(clock):
    earlier = session(clock).seconds([trial(9.0, 4.0)])
    clock.pass_s(86400.0)  # nobody worked
    resumed = session(clock)
    resumed.resume_from(earlier)
    seconds = resumed.seconds([trial(9.0, 4.0), trial(10.0, 5.0)])
    assert seconds["wall"] == 52.0
    assert (seconds["training"], seconds["evaluation"]) == (19.0, 9.0 + 2.0)
    assert (seconds["importance"], seconds["loading"]) == (4.0, 6.0)


def test_a_part_that_fails_is_counted(clock):
    wall_time = WallTime()

    def fail():
        with wall_time.spend("importance"):
            clock.pass_s(7.0)
            raise ValueError("no scores")

    with pytest.raises(ValueError, match="no scores"):
        fail()
    assert wall_time.seconds([])["importance"] == 7.0


def test_work_that_exceeds_the_wall_time_leaves_no_negative_rest(clock):
    """Workers that run beside one another spend more than passes here."""
    assert session(clock).seconds([trial(90.0, 40.0)])["other"] == 0.0


@pytest.mark.parametrize(
    ("done", "remaining", "expected_s"), [(0, 4, 80.0), (1, 4, 80.0), (4, 2, 10.0), (4, 0, 0.0), (4, -1, 0.0)]
)
def test_the_remaining_time_is_at_the_rate_of_this_sessions_trials(clock, done, remaining, expected_s):
    assert session(clock).remaining_s(done, remaining) == expected_s


def test_a_whole_search_is_accounted_for(finished_run):
    seconds = finished_run.seconds
    assert sum(seconds[name] for name in PARTS) == pytest.approx(seconds["wall"], rel=0.01)
    assert seconds["training"] == sum(record.seconds("training") for record in finished_run.records) > 0
    assert 0 < finished_run.overhead < 1
