"""Decisions of the Ray engine that need no Ray: limits, causes, what a node must see."""

import pytest

from autoprune.engines import dispatch
from autoprune.engines.dispatch import Cluster, Silence, cause_of, missing_inputs, sizes, worker_slots


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(dispatch.time, "monotonic", lambda: now[0])
    return now


def test_a_rung_is_limited_from_the_third_answer_by_ten_times_its_median(clock):
    silence = Silence()
    for trial, seconds in (("a", 100), ("b", 30)):
        silence.begin(trial)
        clock[0] += seconds
        silence.answer(trial)
        silence.end(trial)
        assert silence.limit_s(0) is None
    silence.begin("hung")
    silence.begin("c")
    clock[0] += 40
    silence.answer("c")
    assert silence.limit_s(0) == 10 * 40  # the median of 30, 40, 100
    assert silence.limit_s(1) is None  # nobody has come through rung 1
    clock[0] += 360
    assert silence.overdue() == []
    clock[0] += 1
    assert silence.overdue() == [("hung", "no answer at rung 0 for 401 s (the median is 40 s)")]
    assert silence.overdue() == []  # named once


def test_short_rungs_have_a_minute(clock):
    silence = Silence()
    for _ in range(3):
        silence.begin("a")
        clock[0] += 0.1
        silence.answer("a")
    assert silence.limit_s(0) == dispatch.LEAST_LIMIT_S


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "Failure # 1\nTask was killed due to the node running low on memory.\nMemory …",
            "its node ran low on memory",
        ),
        ("The actor died because its node has died. Node Id: 12", "its node died"),
        ("The actor died unexpectedly before finishing this task.\n\tclass_name: X\n", "its worker died"),
        (
            "ray::X.train()\n  File …\nZeroDivisionError: no such kernel\n",
            "ZeroDivisionError: no such kernel",
        ),
        ("", "its worker died"),
    ],
)
def test_causes_are_told_in_a_few_words(text, cause):
    assert cause_of(text) == cause


def test_a_node_with_other_data_is_told_from_one_with_the_same(tmp_path):
    file = tmp_path / "instances_train.json"
    file.write_text("{}")
    here = sizes((file, tmp_path))
    assert missing_inputs(here) is None
    file.write_text("{} ")
    assert missing_inputs(here) == f"has another {file} (3 bytes, here 2)"
    file.unlink()
    assert missing_inputs(here) == f"can't see {file}"


@pytest.mark.parametrize(
    ("resources", "cpus", "gpus", "workers"),
    [
        ({"CPU": 16.0, "GPU": 4.0}, 4, 0.5, 4),
        ({"CPU": 16.0, "GPU": 1.0}, 2, 0.5, 2),
        ({"CPU": 3.0}, 1, 0, 3),
        ({"CPU": 3.0}, 1, 0.1, 0),
        ({"CPU": 16.0, "GPU": 1.0}, 1, 0.1, 10),  # ten tenths are one
    ],
)
def test_a_node_has_room_for_whole_workers(resources, cpus, gpus, workers):
    assert worker_slots(resources, Cluster(cpus_per_trial=cpus, gpus_per_trial=gpus)) == workers
