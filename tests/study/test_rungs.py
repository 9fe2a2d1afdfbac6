import pytest
from hypothesis import given
from hypothesis import strategies as st

from autoprune.data.rivals import RACED
from autoprune.study.records import Record
from autoprune.study.rungs import first_systematic_failure, is_promoted, score_of

scores = st.lists(st.floats(0, 1), min_size=3, max_size=30)


@given(scores, st.floats(0, 1), st.sampled_from([0.25, 0.5, 0.75, 1.0]))
def test_one_objective_keeps_the_best_share(others, score, keep):
    better = sum(other >= score for other in others)  # of equals, the earlier one is better
    expected = better < keep * (len(others) + 1)
    assert is_promoted((score,), [(other,) for other in others], ("maximize",), keep) is expected


def test_the_first_few_go_on_whatever_they_reach():
    others = []
    for _ in range(3):
        assert is_promoted((0.0, 9.0), others, ("maximize", "minimize"), 0.1)
        others.append((1.0, 1.0))
    assert not is_promoted((0.0, 9.0), others, ("maximize", "minimize"), 0.1)


def test_a_dominated_trial_is_stopped_and_a_trade_off_goes_on():
    others = [(0.4, 50.0), (0.3, 25.0), (0.2, 50.0), (0.1, 25.0)]
    directions = ("maximize", "minimize")
    assert is_promoted((0.35, 30.0), others, directions, 0.6)
    assert not is_promoted((0.05, 50.0), others, directions, 0.6)


@pytest.mark.parametrize("keep", [0.0, -1.0, 1.1])
def test_keep_out_of_range_is_refused(keep):
    with pytest.raises(ValueError, match="keep"):
        is_promoted((1.0,), [], ("maximize",), keep)


@pytest.mark.parametrize(
    ("maps", "others", "expected"),
    [
        ([0.3, 0.4, 0.0], {"loss": 1.0}, "map"),
        ([0.02, 0.019], {"loss": 1.0}, "map"),  # half of them will do
        ([0.0, 0.3, 0.019], {"loss": 1.0, "features": 1.0}, "loss"),
        ([0.0, 0.0, 0.3], {"features": 1.0}, "features"),
        ([0.0, 0.0], {"loss": float("nan"), "features": 1.0}, "features"),
        ([0.0, 0.0], {}, None),
        ([0.0], {"loss": float("inf")}, None),
    ],
)
def test_trials_are_ranked_by_what_tells_them_apart(maps, others, expected):
    assert score_of([{"map": value, **others} for value in maps]) == expected


def test_a_metric_that_one_trial_lacks_ranks_none():
    assert score_of([{"map": 0.0, "loss": 1.0, "features": 1.0}, {"map": 0.0, "features": 2.0}]) == "features"


def trial(number, state, rungs):
    return Record(number, state, "sampler", None, {}, ({"map": 0.1},) * rungs, reason=f"reason {number}")


def test_a_rung_is_hopeless_once_enough_failed_there_and_none_came_through():
    failed = [trial(0, "stopped", 1), trial(3, "failed", 1), trial(5, "failed", 1)]
    assert first_systematic_failure(failed, 3) is None
    assert first_systematic_failure([*failed, trial(6, "failed", 1)], 3).reason == "reason 3"
    assert first_systematic_failure([*failed, trial(6, "failed", 0)], 3) is None  # rung 0 can be passed
    assert first_systematic_failure([*failed, trial(6, "failed", 1), trial(7, "complete", 2)], 3) is None
    assert first_systematic_failure([trial(n, "failed", 0) for n in range(4)], 3).number == 0
    assert first_systematic_failure([], 3) is None


def test_a_trial_that_lost_a_race_has_no_loss_and_the_others_are_ranked_by_theirs():
    seen = [{"map": 0.0, "loss": 1.0}, {"map": 0.0, "loss": 2.0}, {"map": 0.01, RACED: 32}]
    assert score_of(seen) == "loss"
    assert score_of([*seen, {"map": 0.0}]) is None
    assert score_of([{"map": 0.01, RACED: 32}]) is None
