import io

from rich.console import Console

from autoprune import progress
from autoprune.search.status import status, trial_line
from autoprune.space.input_size import INPUT_SIZE
from autoprune.study.records import Record


def record(number, state, scores, gflops=1.0, **more):
    rungs = tuple({"map": score, "gflops": gflops} for score in scores)
    return Record(number, state, "sampler", None, {"a": number}, rungs, **more)


RECORDS = [
    record(0, "complete", (0.3, 0.5), gflops=2.0),
    record(1, "stopped", (0.2,)),
    record(2, "complete", (0.3, 0.4), gflops=1.0),
    record(3, "failed", (), reason="no"),
    record(4, "running", ()),
    record(5, "running", (0.3,)),
    record(6, "complete", (0.3,), same_as=0),
    record(7, "running", (0.3,), repeat_of=0),
]


def test_the_status_counts_what_the_study_holds():
    lines = status(RECORDS, [RECORDS[2], RECORDS[0]], 9, "3 min")
    assert [" ".join(line.split()) for line in lines] == [
        "workers 1 at rung 0, 1 at rung 1, 1 re-evaluating top candidates",
        "trials 4 of 9 done; 2 complete, 1 stopped, 1 failed; 4 through rung 0, 2 through rung 1",
        "front mAP 50.0 at 2.00 GFLOPs, mAP 40.0 at 1.00 GFLOPs",
        "left 3 min",
    ]


def test_a_trial_that_failed_says_at_which_size_before_the_reason():
    failed = Record(1, "failed", "uniform", None, {"a": 1, INPUT_SIZE: 96}, (), reason="9 ms is above it")
    line = trial_line(failed, [failed], 8, "9 s")
    assert line == "1/8 trial 1 (uniform): failed at 96 px: 9 ms is above it; none complete; 9 s left"
    passed = Record(2, "complete", "uniform", None, {INPUT_SIZE: 96}, ({"map": 0.5, "gflops": 1.0},))
    assert "mAP 50.0, 1.00 GFLOPs, 96 px; best 50.0" in trial_line(passed, [passed], 8, "9 s")


def test_before_any_trial_there_is_no_front_and_no_time():
    assert status([], [], 9, "0 s")[1:] == ["trials   0 of 9 done", "left     known after the first trial"]


def test_a_long_front_is_shown_in_part():
    front = [record(number, "complete", (number / 100,), gflops=float(number)) for number in range(20)]
    line = status(front, front, 20, "")[2]
    assert line.startswith("front    mAP 19.0 at 19.00 GFLOPs, ")
    assert line.count("mAP") <= 6
    assert line.endswith("(of 20)")


def test_on_a_terminal_the_lines_stay_below_what_is_said():
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=80)
    with progress.show(console), progress.StatusDisplay() as shown:
        shown.show(["workers  2 at rung 0"])
        progress.say("trial 0: done")
    text = screen.getvalue()
    assert "workers  2 at rung 0" in text
    assert text.index("trial 0: done") < text.rindex("workers")


def test_elsewhere_it_is_a_line_a_minute(monkeypatch):
    printed, now = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress.show(Console(file=printed, width=200)), progress.StatusDisplay() as shown:
        for seconds in range(0, 130, 5):
            now[0] = float(seconds)
            shown.show([f"workers  {seconds}", "left     1 min"])
    assert printed.getvalue().splitlines() == ["workers 60; left 1 min", "workers 120; left 1 min"]
