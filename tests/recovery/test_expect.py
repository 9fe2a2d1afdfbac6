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
from autoprune.recovery.expect import Pair, affordable, expect, expecting
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


def said(after_step, *states):
    lines = io.StringIO()
    with progress.show(Console(file=lines, width=300)):
        for state in states:
            after_step(state)
    return lines.getvalue()


@pytest.mark.parametrize(
    ("untrained", "loss", "expected"),
    [
        (0.4, 1.8, (0.56, 0.53, 0.59)),  # three quarters of 0.8 · 0.4 are still lost
        (0.4, 1.0, (0.8, 0.77, 0.8)),  # not above the dense one
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
    end = 70 - 0.75 * (now - dense) / (before - dense) * 60
    after_step = expecting(task, untrained, MAPS, LONG, "recovery of trial 3")
    states = [SimpleNamespace(step=step, averaged=lambda _: tenth) for step in (99, 100, 101)]
    assert said(after_step, *states) == (
        f"recovery of trial 3: after 100 of 1000 steps it expects to end at mAP {end:.1f}, {end - 3:.1f} to "
        f"{end + 3:.1f} (four of five do)\n"
    )


def test_nothing_is_said_where_nothing_can_be_told(task, detectors, monkeypatch):
    untrained, tenth = detectors
    state = SimpleNamespace(step=100, averaged=lambda _: tenth)
    assert said(expecting(task, untrained, MAPS, LONG, "recovery"), state)
    assert not said(expecting(task, task.model, MAPS, LONG, "recovery"), state)  # nothing was lost
    assert expecting(task, untrained, MAPS, TrainSettings(99, batch_size=2), "recovery") is None
    with monkeypatch.context() as patch:
        patch.setattr(distributed, "rank", lambda: 1)
        assert not said(expecting(task, untrained, MAPS, LONG, "recovery"), state)
    monkeypatch.setattr(Probe, "_passes", lambda *_: iter([(None, [])]))  # a detector without losses
    assert not said(expecting(task, untrained, MAPS, LONG, "recovery"), state)


def test_it_costs_a_twentieth_of_the_training_at_most(task, detectors, monkeypatch):
    """In passes over images: three detectors once, against one forward and two backward in each step."""
    assert affordable(TrainSettings(100, batch_size=8), 40)
    assert not affordable(TrainSettings(100, batch_size=8), 41)
    monkeypatch.setattr(module, "affordable", lambda settings, images: images < 3)
    assert expecting(task, detectors[0], MAPS, LONG, "recovery") is None  # the three of a proxy


def test_the_training_ends_with_the_same_weights(task, detectors, monkeypatch):
    monkeypatch.setattr(module, "LEAST_STEPS", 10)
    monkeypatch.setattr(module, "MOST_COST", 1)
    settings, start = TrainSettings(10, batch_size=2, learning_rate=1e-3), detectors[0]
    states, lines = [], io.StringIO()
    for watch in (None, expecting(task, start, MAPS, settings, "recovery")):
        with progress.show(Console(file=lines, width=300)):
            states.append(train(start, task.train, settings, "cpu", after_step=watch).model.state_dict())
    assert lines.getvalue().startswith("recovery: after 1 of 10 steps it expects to end at mAP ")
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


class StoppedError(Exception):
    """Ends a recovery where its training would begin."""


@pytest.mark.parametrize("size", ["own", "smaller"])
def test_recoveries_at_the_dense_detectors_input_size_are_watched(
    run, sized_run, tmp_path, monkeypatch, size
):
    """From the mAP before the training, and the dense detector's, on all validation images."""
    folder = shutil.copytree(run.run if size == "own" else sized_run, tmp_path / "run")
    trial = next(
        r.number for r in load_result(folder).records if size == "own" or r.origin == "dense at 96 px"
    )
    calls = []

    def stop(start, *arguments):
        calls.append((start, arguments[-1]))
        raise StoppedError

    monkeypatch.setattr(recover_policy, "train", stop)
    monkeypatch.setattr(recover_policy, "expecting", lambda *arguments: arguments)
    with pytest.raises(StoppedError):
        recover(folder, [trial], 150, learning_rate=1e-3)
    ((start, watch),) = calls
    if size == "smaller":
        assert watch is None
        return
    task, model, maps, settings, label = watch
    assert model is start
    assert maps.dense == evaluate(task.model, task.val, batch_size=2).map
    assert maps.untrained == evaluate(start, task.val, batch_size=2).map
    assert (settings.steps, settings.learning_rate, label) == (150, 1e-3, f"recovery of trial {trial}")
