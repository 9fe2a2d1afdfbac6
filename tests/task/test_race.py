"""An evaluation in a race: the numbers of a plain one, or an estimate and fewer images."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from autoprune.config import make_config
from autoprune.data import racing
from autoprune.data.detections import detect
from autoprune.data.evaluate import evaluate
from autoprune.data.evaluators import IMAGE
from autoprune.data.racing import RaceOrder
from autoprune.data.rivals import RESAMPLES, Rival, decode_maps, encode_maps
from autoprune.task.pruning_task import load_task
from autoprune.task.race import race


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**demo_settings))


@pytest.fixture(scope="module")
def order(task):
    order = np.random.default_rng(0).permutation(len(task.val)).tolist()
    half = len(order) // 2
    return RaceOrder(tuple(order), (half, len(order)))


def race_of(task, order, rival):
    return race(partial(detect, task.model, task.val), task.val, order, rival)


@pytest.fixture(scope="module")
def alone(task, order):
    return race_of(task, order, None)


def test_without_a_rival_it_is_the_plain_evaluation_and_keeps_its_maps(task, order, alone):
    plain = evaluate(task.model, task.val)
    assert alone.map == pytest.approx(plain.map, abs=1e-3)  # batches differ, and with them round-off
    assert alone.images == len(task.val)
    maps = decode_maps(alone.maps)
    assert len(maps) == 2
    assert maps[-1][0] == pytest.approx(alone.map, abs=2e-5)
    first = evaluate(task.model, Chosen(task.val, order.images[: order.looks[0]]))
    assert maps[0][0] == pytest.approx(first.map, abs=1e-3)


class Chosen:
    """A split of some images of another one."""

    def __init__(self, split, images):
        self._split, self._images = split, images
        for name in ("files", "sizes", "stored_sizes", "image_ids"):
            setattr(self, name, [getattr(split, name)[index] for index in images])

    def __getattr__(self, name):
        return getattr(self._split, name)

    def __len__(self):
        return len(self._images)

    def get(self, index):
        return self._split.get(self._images[index])


def test_one_that_is_beaten_stops_early_with_an_estimate(task, order, alone):
    """Half of the detections are missing, against all of them."""
    rows = detect(task.model, task.val, range(len(task.val)))
    worse = rows[np.random.default_rng(0).random(len(rows)) < 0.3]
    rival = Rival(0, alone.map, {}, alone.maps)
    calls = []

    def of(part):
        calls.append(list(part))
        return worse[np.isin(worse[:, IMAGE], [task.val.image_ids[index] for index in part])]

    raced = race(of, task.val, order, rival)
    assert calls == [list(order.images[: order.looks[0]])]
    assert raced.images == order.looks[0]
    assert raced.scores is raced.maps is None
    full = race(of, task.val, order, None)
    seen = decode_maps(full.maps)[0][0] - decode_maps(alone.maps)[0][0]
    assert raced.map == pytest.approx(max(alone.map + seen, 0), abs=5e-5)


def test_a_rival_that_was_looked_at_elsewhere_stops_nobody(task, order, alone):
    """A run of a version that looked at other numbers of images: their mAPs can't be compared."""
    perfect = np.ones((len(order.looks) - 1, 1 + RESAMPLES))
    assert race_of(task, order, Rival(0, 1.0, {}, encode_maps(perfect))) == alone


def test_one_that_is_as_good_sees_all_images(task, order, alone):
    raced = race_of(task, order, Rival(0, alone.map, {}, alone.maps))
    assert raced == alone
    weaker = encode_maps(decode_maps(alone.maps) / 2)
    better = race_of(task, order, Rival(0, alone.map / 2, {}, weaker))
    assert dataclasses.replace(better, scores=None) == dataclasses.replace(alone, scores=None)


def test_a_trial_races_where_the_settings_say_so(demo_settings, monkeypatch):
    from .test_evaluator import make_evaluator

    monkeypatch.setattr(racing, "LEAST", 2)
    config = {**demo_settings, "criterion": "l2", "rungs": [0], "reconstruct_images": 0, "batch_size": 2}
    config["recalibration_images"] = 0
    evaluator = make_evaluator(load_task(make_config(**config, racing=True)))
    plain = make_evaluator(load_task(make_config(**config)))
    groups = evaluator.task.graph.prunable.items()
    dense = {name: group.width for name, group in groups}
    poor = {name: max(group.width // 8, 1) for name, group in groups}
    best, _ = evaluator.evaluate(dense, 0, None)
    assert best["map"] == pytest.approx(plain.evaluate(dense, 0, None)[0]["map"], abs=1e-3)
    rival = Rival(0, best["map"], {"gflops": 0.0}, best["maps"])
    lost, _ = evaluator.evaluate(poor, 0, None, rivals=[rival])
    assert lost["raced_images"] < len(evaluator.task.val)
    assert "maps" not in lost
    dearer = dataclasses.replace(rival, costs={"gflops": 1e9})
    assert "raced_images" not in evaluator.evaluate(poor, 0, None, rivals=[dearer])[0]
    assert "raced_images" not in evaluator.evaluate(poor, 0, None, 1, [rival])[0]  # a repeat
    assert "raced_images" not in plain.evaluate(poor, 0, None, rivals=[rival])[0]


def test_a_training_that_loses_its_race_leaves_the_detector_before_it(demo_settings, monkeypatch):
    """What a trial is scored does not depend on racing where its training made it worse."""
    from .test_evaluator import make_evaluator

    monkeypatch.setattr(racing, "LEAST", 2)
    config = {**demo_settings, "criterion": "l2", "rungs": [0, 1], "reconstruct_images": 0, "batch_size": 2}
    config |= {"recalibration_images": 0, "learning_rate": 0.03}
    maps, lost = {}, []
    monkeypatch.setattr("autoprune.task.evaluator.race", lambda *given: lost.append(race(*given)) or lost[-1])
    for racing_is_on in (True, False):
        evaluator = make_evaluator(load_task(make_config(**config, racing=racing_is_on)))
        dense = {name: group.width for name, group in evaluator.task.graph.prunable.items()}
        before, state = evaluator.evaluate(dense, 0, None)
        rival = Rival(0, 1.0, {"gflops": 0.0}, encode_maps(np.ones_like(decode_maps(before["maps"]))))
        after, kept = evaluator.evaluate(dense, 1, state, rivals=[rival])
        assert kept.model is state.model
        assert "raced_images" not in after
        maps[racing_is_on] = after["map"]
        assert after["map"] == before["map"]
        assert after["maps"] == before["maps"]
    assert lost[-1].scores is None, "the trained detector lost its race"
    assert maps[True] == pytest.approx(maps[False], abs=1e-3)
