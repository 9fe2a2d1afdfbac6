"""The arithmetic of an estimate, against sums written out by hand."""

import pytest

from autoprune.search.estimate import Estimate, Line, Part, TrialCosts, times


def level(seconds: float) -> Line:
    return Line(((1.0, seconds),))


def costs(**changes: Line) -> TrialCosts:
    lines = {
        "reconstruction": Line(((2.0, 4.0), (1.0, 2.0))),
        "training": level(0.5),
        "step": Line(((1.0, 0.1), (3.0, 0.3))),
        "image": level(0.01),
        "probe": level(0.25),
        "latency": level(0.0),
    }
    return TrialCosts(reconstructor_s=7.0, **{**lines, **changes})


def estimate(*parts: Part, **changes: object) -> Estimate:
    values = {"rungs": (4,), "trials": 4, "finished": 0, "repeats": 0, "workers": 1, "device": "cpu"}
    values |= {"devices": 2.0, "megabytes": 1.0, "measuring_s": 1.0}
    return Estimate(parts=parts, **{**values, **changes})  # type: ignore[arg-type]


def test_a_line_is_straight_between_what_was_measured_and_level_beyond() -> None:
    line = Line(((3.0, 30.0), (1.0, 10.0)))
    assert [line(gflops) for gflops in (0.5, 1.0, 1.5, 3.0, 9.0)] == [10, 10, 15, 30, 30]


def test_what_each_rung_costs() -> None:
    rungs = (0, 20, 50)
    bottom, middle, top = (costs().of_rung(1.5, rungs, rung, images=100) for rung in range(3))
    # at 1.5 GFLOPs: reconstruction 3 s, a step 0.15 s
    assert bottom == {"reconstruction": 3.0, "training": 0.0, "evaluation": 100 * 0.01 + 0.25}
    assert middle == pytest.approx(
        {"reconstruction": 0.0, "training": 0.5 + 20 * 0.15, "evaluation": 1.0 + 0.25}
    )
    assert top == pytest.approx({"reconstruction": 0.0, "training": 0.5 + 30 * 0.15, "evaluation": 1.0})


def test_a_first_rung_that_trains_is_evaluated_twice_for_its_learning_rate() -> None:
    only = costs(latency=level(0.5)).of_rung(1.0, (10,), 0, images=100)
    assert only == pytest.approx({"reconstruction": 2.5, "training": 1.5, "evaluation": 2.0})


def test_workers_divide_what_they_do_side_by_side_and_nothing_else() -> None:
    parts = (Part("importance", "", 100.0), Part("training", "", 800.0, "--rungs", parallel=True))
    alone, eight = estimate(*parts, trials=32), estimate(*parts, trials=32, workers=8, devices=8.0)
    assert (alone.wall_s, alone.work_s) == (900, 900)
    assert (eight.wall_s, eight.work_s) == (200, 900)
    assert eight.device_hours == pytest.approx(8 * 200 / 3600)
    assert estimate(*parts, trials=2, workers=8).wall_s == 100 + 400, "no more workers than trials"


def test_the_advice_names_what_takes_longest_by_the_clock() -> None:
    parts = (
        Part("importance", "", 150.0, "--importance-images"),
        Part("training", "", 800.0, "--rungs", True),
    )
    assert "training; --rungs lowers it" in estimate(*parts, trials=32).advice()
    assert "importance; --importance-images" in estimate(*parts, trials=32, workers=8).advice()


def test_the_summary_counts_hours_of_what_the_search_occupies() -> None:
    part = Part("training", "", 7200.0, "--rungs", parallel=True)
    assert "about 2.0 h on 1 worker, 4 core-hours, 1.0 MB" in estimate(part).summary()
    gpus = estimate(part, workers=4, devices=2.0, device="cuda")
    assert "30 min on 4 workers, 1 GPU-hours" in gpus.summary()
    assert gpus.to_dict()["device_hours"] == pytest.approx(1.0)


def test_counts_are_written_with_the_time_of_each() -> None:
    assert times(24, 28.8) == "24 x 1.2 s"
    assert times(4608, 23.04) == "4,608 x 5 ms"
