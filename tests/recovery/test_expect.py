"""What a recovery expects: the rule by hand, its losses by hand, and that looking changes nothing."""

import copy
import io
import shutil
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

from autoprune import progress
from autoprune.config import load_config
from autoprune.data.evaluate import evaluate
from autoprune.graph import prune
from autoprune.recovery import expect as module
from autoprune.recovery import recover_policy
from autoprune.recovery.expect import Expected, Pair, affordable, expect, expecting, say_expected
from autoprune.recovery.recover import recover
from autoprune.run.results import load_result
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import load_task
from autoprune.training import TrainSettings, distributed, train

LONG = TrainSettings(1000, batch_size=2)
MAPS = Pair(0.7, 0.1)


@pytest.fixture(scope="module")
def task(run):
    return load_task(load_config(run.run / "config.yaml"))


@pytest.fixture(scope="module")
def detectors(task, run):
    """The policy with a half of its weights noise, and with less of it: untrained, and after a tenth."""
    pruned = prune(task.model, task.graph, run.best.policy.keep)
    generator = torch.Generator().manual_seed(0)
    noise = [torch.randn(p.shape, generator=generator) * p.detach().std() for p in pruned.parameters()]
    made = []
    for strength in (0.5, 0.3):
        model = prune(task.model, task.graph, run.best.policy.keep)
        with torch.no_grad():
            for weight, added in zip(model.parameters(), noise, strict=True):
                if weight.ndim == 4:
                    weight += strength * added
        made.append(model.eval())
    return made


def loss(task, model):
    """The detection loss on the images of proxies, three, in batches of two, with fixed statistics."""
    model = copy.deepcopy(model).train()
    for part in model.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.eval()
    with torch.no_grad():
        batches = [task.val.batch(numbers, "cpu") for numbers in ([0, 1], [2])]
        return sum(sum(float(value) for value in model(*batch).values()) for batch in batches) / 2


def expected_at(task, start, *states):
    """What is told at these states of a long training."""
    expected = []
    after_step = expecting(task, start, MAPS, LONG, expected.append)
    for state in states:
        after_step(state)
    return expected


@pytest.mark.parametrize(
    ("untrained", "loss", "expected"),
    [
        (0.4, 1.8, (0.56, 0.52, 0.6)),  # three quarters of 0.8 · 0.4 are still lost
        (0.4, 1.0, (0.8, 0.76, 0.8)),  # not above the dense one
        (0.4, 3.0, (0.4, 0.4, 0.4)),  # worse than before: the untrained weights are kept
        (0.79, 2.0, (0.7925, 0.79, 0.8)),
        (0.4, 0.9, None),  # below the dense one's
        (0.8, 1.5, None),  # nothing was lost
    ],
)
def test_the_expectation_lies_between_the_untrained_and_the_dense_detector(untrained, loss, expected):
    assert expect(Pair(0.8, untrained), Pair(1.0, 2.0), loss) == (expected and pytest.approx(expected))
    assert expect(Pair(0.8, untrained), Pair(1.0, 1.0), loss) is None  # the loss has not risen


def test_the_losses_are_the_detectors_and_count_once_after_a_tenth(task, detectors):
    untrained, tenth = detectors
    dense, before, now = (loss(task, model) for model in (task.model, *detectors))
    assert dense < now < before
    end = 0.7 - 0.75 * (now - dense) / (before - dense) * 0.6
    states = [SimpleNamespace(step=step, averaged=lambda _: tenth) for step in (99, 100, 101)]
    (expected,) = expected_at(task, untrained, *states)
    assert expected == pytest.approx((end, end - 0.04, end + 0.04))


def test_the_line_is_in_points_and_above_the_bar():
    out = io.StringIO()
    with progress.show(Console(file=out, force_terminal=True, width=200)):
        for _ in progress.track([1], "recovery"):
            say_expected("recovery of trial 3", LONG, Expected(0.4251, 0.3851, 0.4651))
    line = "after 100 of 1000 steps it expects to end at mAP 42.5, 38.5 to 46.5 (four of five do)"
    assert f"recovery of trial 3: {line}" in out.getvalue()


def test_nothing_is_told_where_nothing_can_be(task, detectors, monkeypatch):
    untrained, tenth = detectors
    state = SimpleNamespace(step=100, averaged=lambda _: tenth)
    assert expected_at(task, untrained, state)
    assert not expected_at(task, task.model, state)  # nothing was lost
    assert expecting(task, untrained, MAPS, TrainSettings(99, batch_size=2), print) is None
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: 1)
        own, measured = Probe.loss, []
        patch.setattr(Probe, "loss", lambda self, model: measured.append(model) or own(self, model))
        assert not expected_at(task, untrained, state)
        assert len(measured) == 3  # in every process: losses may be reduced over all of them
    monkeypatch.setattr(Probe, "_passes", lambda *_: iter([(None, [])]))  # a detector without losses
    assert not expected_at(task, untrained, state)


def test_it_costs_a_twentieth_of_the_training_at_most(task, detectors, monkeypatch):
    """In passes over images: three detectors once, against one forward and two backward in each step."""
    assert affordable(TrainSettings(100, batch_size=8), 40)
    assert not affordable(TrainSettings(100, batch_size=8), 41)
    monkeypatch.setattr(module, "affordable", lambda settings, images: images < 3)
    assert expecting(task, detectors[0], MAPS, LONG, print) is None  # the three of a proxy


def test_the_training_ends_with_the_same_weights(task, detectors, monkeypatch):
    monkeypatch.setattr(module, "LEAST_STEPS", 10)
    monkeypatch.setattr(module, "MOST_COST", 1)
    settings, start = TrainSettings(10, batch_size=2, learning_rate=1e-3), detectors[0]
    expected = []
    watch = expecting(task, start, MAPS, settings, expected.append)
    plain = train(start, task.train, settings, "cpu").model.state_dict()
    watched = train(start, task.train, settings, "cpu", after_step=watch).model.state_dict()
    assert len(expected) == 1
    assert plain.keys() == watched.keys()
    assert all(torch.equal(plain[name], watched[name]) for name in plain)


class StoppedError(Exception):
    """Ends a recovery where its training would begin."""


@pytest.mark.parametrize("origin", [None, "dense at 96 px"])
def test_recoveries_at_the_own_input_size_are_watched(run, sized_run, tmp_path, monkeypatch, origin):
    """From the mAP before the training, and the dense detector's, on all validation images."""
    ignored = shutil.ignore_patterns("recovered")
    folder = shutil.copytree(sized_run if origin else run.run, tmp_path / "run", ignore=ignored)
    trial = next(r.number for r in load_result(folder).records if origin in (None, r.origin))
    calls = []

    def stop(start, *arguments, **_):
        calls.append((start, arguments[-1]))
        raise StoppedError

    monkeypatch.setattr(recover_policy, "train", stop)
    monkeypatch.setattr(recover_policy, "expecting", lambda *arguments: arguments)
    with pytest.raises(StoppedError):
        recover(folder, [trial], 150, learning_rate=1e-3)
    ((start, watch),) = calls
    if origin is not None:
        assert watch is None
        return
    task, model, maps, settings, tell = watch
    assert model is start
    assert maps.dense == evaluate(task.model, task.val, batch_size=2).map
    assert maps.untrained == evaluate(start, task.val, batch_size=2).map
    assert (settings.steps, settings.learning_rate) == (150, 1e-3)
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=200)):
        tell(Expected(0.5, 0.47, 0.53))
    assert lines.getvalue().startswith(f"recovery of trial {trial}: after 15 of 150 steps it expects")
