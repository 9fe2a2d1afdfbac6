import dataclasses

import numpy as np
import pytest

from autoprune.data.rivals import RESAMPLES, encode_maps
from autoprune.study.compare import is_worse, like_the_best, paired
from autoprune.study.confirm import next_to_confirm
from autoprune.study.records import Record

NOISE = np.random.default_rng(0).normal(0, 0.01, RESAMPLES)  # what images do to all trials alike


def record(number, value, own=0.001, budget=1.0, **more):
    noise = NOISE + np.random.default_rng(number).normal(0, own, RESAMPLES)
    maps = encode_maps(np.array([[value, *(value + noise)]]))
    metrics = {"map": value, "gflops": 1.0}
    return Record(number, "complete", "sampler", budget, {}, (metrics,), prefix_maps=(maps,), **more)


def test_the_paired_error_is_that_of_the_difference_and_not_of_either():
    first, second = record(1, 0.5), record(2, 0.5)
    assert paired(first, second) == pytest.approx(0.001 * 2**0.5, rel=0.25)
    assert paired(first, first) == 0
    assert paired(first, dataclasses.replace(second, prefix_maps=(None,))) is None
    assert paired(first, dataclasses.replace(second, prefix_maps=())) is None
    looks = np.repeat(0.5, 2 * (1 + RESAMPLES)).reshape(2, -1)  # of a version that looked elsewhere
    assert paired(first, dataclasses.replace(second, prefix_maps=(encode_maps(looks),))) is None


def test_what_can_not_be_told_from_the_best_of_its_budget():
    records = [
        record(1, 0.5),
        record(2, 0.499),  # within two errors
        record(3, 0.49),  # beyond them, though within the error of one mAP
        record(4, 0.3, budget=2.0),
        dataclasses.replace(record(5, 0.499), prefix_maps=(None,)),
        dataclasses.replace(record(6, 0.4999), state="stopped"),
    ]
    assert like_the_best(records) == {2}
    assert is_worse(records[2], records[0])
    assert not is_worse(records[2], records[0], more=0.01)


def repeat_of(number, value):
    return dataclasses.replace(record(10 + number, value), repeat_of=number)


def test_as_many_are_re_evaluated_as_can_not_be_told_apart():
    objectives = ("map", "gflops")
    clear = [record(1, 0.6), record(2, 0.5), record(3, 0.4)]
    assert next_to_confirm(clear, objectives, most=4).number == 1
    assert next_to_confirm([*clear, repeat_of(1, 0.6)], objectives, most=4) is None
    close = [record(1, 0.5), record(2, 0.499), record(3, 0.4)]
    order = []
    while (chosen := next_to_confirm(close, objectives, most=4)) is not None:
        order.append(chosen.number)
        close.append(repeat_of(chosen.number, 0.5))
    assert order == [1, 2]
    assert next_to_confirm([record(1, 0.5), record(2, 0.499)], objectives, most=0) is None
    unknown = [dataclasses.replace(each, prefix_maps=(None,)) for each in clear]
    assert next_to_confirm(unknown, objectives, most=4).number == 1
