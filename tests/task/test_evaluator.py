"""A trial's numbers repeat, and are those of the masked detector, of the pruned module and of pycocotools."""

import numpy as np
import pytest
import torch

from autoprune.config import make_config
from autoprune.data.evaluate import evaluate
from autoprune.errors import BudgetError, TrainingError
from autoprune.graph import mask
from autoprune.latency.timing import Latency
from autoprune.policy import hash_weights
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.input_size import INPUT_SIZE
from autoprune.space.resolve import resolve
from autoprune.task import evaluator as module
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.pruning_task import load_task
from autoprune.task.scoring import score_channels


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**{**demo_settings, "criterion": "l2"}))


def make_evaluator(task):
    """An evaluator that ranks channels by their norm; at most nine tenths of a group may go."""
    importance = score_channels(task, "l2")
    rules = (GroupRule(match="*", max_ratio=0.9),)
    file = SpaceFile(model=task.spec.name, input_size=task.input_size, criterion="l2", groups=rules)
    return PolicyEvaluator(task, resolve(file, task.graph, importance), importance)


@pytest.fixture(scope="module")
def widths(task):
    """Three quarters of every group."""
    return {name: group.width * 3 // 4 for name, group in task.graph.prunable.items()}


@pytest.fixture(scope="module")
def keep(task, widths):
    """The most important channels of each group, by scores that are computed once more."""
    importance = score_channels(task, "l2")
    order = {name: np.argsort(-scores, kind="stable") for name, scores in importance.items()}
    return {name: tuple(sorted(order[name][:width].tolist())) for name, width in widths.items()}


def test_the_most_important_channels_of_each_group_are_kept(task, widths, keep):
    assert make_evaluator(task).keep(widths) == keep


def test_the_same_policy_gives_the_same_numbers_and_leaves_the_dense_detector_alone(task, widths):
    before = hash_weights(task.model.state_dict())
    runs = []
    for work in (make_evaluator(task), make_evaluator(task)):
        first, state = work.evaluate(widths, 0, None)
        second, _ = work.evaluate(widths, 1, state)
        runs.append([(m["map"], m["map50"], m["gflops"]) for m in (first, second)])
    assert runs[0] == runs[1]
    repeated = [work.evaluate(widths, 0, None, repeat)[0] for repeat in (1, 1, 2)]
    assert repeated[0]["map"] == repeated[1]["map"]
    assert len({runs[0][0][0], repeated[0]["map"], repeated[2]["map"]}) == 3  # each has a seed of its own
    assert runs[0][0] != runs[0][1]  # a step of training changed something
    assert hash_weights(task.model.state_dict()) == before


@pytest.mark.parametrize(("rate", "better"), [(1e-3, True), (0.05, False)])
def test_a_rung_never_leaves_a_detector_worse(demo_settings, widths, rate, better, monkeypatch):
    """As it was measured before and after by `evaluate`, on the detectors that the rungs had."""
    maps = []

    def recorded(*arguments, **options):
        scores = evaluate(*arguments, **options)
        maps.append(scores.map)
        return scores

    monkeypatch.setattr(module, "evaluate", recorded)
    task = load_task(
        make_config(**{**demo_settings, "learning_rate": rate, "rungs": (0, 2, 4), "criterion": "l2"})
    )
    work, state, reported = make_evaluator(task), None, []
    for rung in range(3):
        before = state
        metrics, state = work.evaluate(widths, rung, state)
        reported.append(metrics["map"])
        assert evaluate(state.model, task.val, batch_size=2).map == reported[-1] == max(maps)
        if not better and rung:
            assert state.model is before.model
    assert (maps[1] > maps[0]) == better


def test_without_recovery_it_is_the_masked_detectors_map(demo_settings, widths, keep):
    config = make_config(
        **{**demo_settings, "reconstruct_images": 0, "recalibration_images": 0, "criterion": "l2"}
    )
    task = load_task(config)
    metrics, _ = make_evaluator(task).evaluate(widths, 0, None)
    masked = evaluate(mask(task.model, task.graph, keep), task.val, batch_size=2)
    assert metrics["map"] == pytest.approx(masked.map, abs=1e-3)


def test_costs_are_those_of_the_pruned_module(task, widths):
    metrics, state = make_evaluator(task).evaluate(widths, 0, None)
    assert metrics["mparams"] == sum(p.numel() for p in state.model.parameters()) / 1e6
    assert {name for name in metrics if name.endswith("_s")} == {"training_s", "evaluation_s", "other_s"}


def test_a_loss_that_is_not_finite_is_the_trials_own_failure(demo_settings, widths):
    config = make_config(**{**demo_settings, "learning_rate": 1e30, "rungs": (3,), "criterion": "l2"})
    task = load_task(config)
    with pytest.raises(TrainingError, match="not finite at step"):
        make_evaluator(task).evaluate(widths, 0, None)


def test_memory_that_runs_out_is_the_trials_own_failure(task, widths, monkeypatch):
    def no_memory(*args, **arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "evaluate", no_memory)
    with pytest.raises(TrainingError, match="out of memory evaluating at rung 0; lower batch_size"):
        make_evaluator(task).evaluate(widths, 0, None)


def test_a_latency_budget_above_the_dense_detector_is_refused(demo_settings):
    task = load_task(make_config(**{**demo_settings, "criterion": "l2"}, budget_latency_ms="1000000"))
    with pytest.raises(BudgetError, match="budget_latency_ms"):
        make_evaluator(task)


@pytest.fixture
def by_size(monkeypatch):
    """Networks take a millisecond for 100 000 parameters; the times of each measurement."""
    measured = []

    def networks(models, *_):
        sizes = [sum(p.numel() for p in model.parameters()) / 1e5 for model in models]
        measured.append(sizes)
        return [Latency(ms, ms, ms, 1) for ms in sizes]

    monkeypatch.setattr(module, "measure_networks", networks)
    return measured


@pytest.mark.usefixtures("by_size")
def test_a_latency_that_no_policy_reaches_is_refused_with_the_smallest(demo_settings):
    task = load_task(make_config(**{**demo_settings, "criterion": "l2"}, budget_latency_ms="1%"))
    work = make_evaluator(task)
    smallest = 10 * task.graph.mparams(work.space.as_dict(work.space.lowest))
    with pytest.raises(BudgetError, match=f"the smallest of the space takes {smallest:.4g} ms here"):
        work.check_latency()


def test_latency_is_measured_once_a_trial_and_refused_above_its_budget(demo_settings, widths, by_size):
    task = load_task(make_config(**{**demo_settings, "criterion": "l2"}, budget_latency_ms="90%"))
    work = make_evaluator(task)
    work.check_latency()
    by_size.clear()
    metrics, state = work.evaluate(widths, 0, None)
    assert metrics["latency_ms"] == pytest.approx(10 * metrics["mparams"])
    assert work.evaluate(widths, 1, state)[0]["latency_ms"] == metrics["latency_ms"]
    assert len(by_size) == 1
    with pytest.raises(TrainingError, match="is above budget_latency_ms"):
        work.evaluate({name: task.graph.prunable[name].width for name in widths}, 0, None)


def test_at_a_smaller_size_the_numbers_are_those_of_a_task_of_that_size(demo_settings):
    """A task whose detector was built for the size; the loss compares, and distances at that size do not."""
    settings = {**demo_settings, "criterion": "l2", "reconstruct_images": 2}
    arguments = {**demo_settings["model_arguments"], "min_size": 96, "max_size": 96}
    both = load_task(make_config(**settings, input_sizes=(1.0, 0.75)))
    built = load_task(make_config(**{**settings, "model_arguments": arguments}))
    widths = {name: group.width * 3 // 4 for name, group in both.graph.prunable.items()}
    ours, theirs = make_evaluator(both), make_evaluator(built)
    ours.dense_map = theirs.dense_map = 0.8  # the rate follows from the own size, which is not theirs
    expected, state = theirs.evaluate(widths, 0, None)
    got, own_state = ours.evaluate({**widths, INPUT_SIZE: 96}, 0, None)
    for name in ("map", "map50", "gflops", "mparams", "loss"):
        assert got[name] == pytest.approx(expected[name], abs=1e-12)
    assert "features" in expected
    assert "features" not in got
    (after, _), (expected, _) = (
        ours.evaluate({**widths, INPUT_SIZE: 96}, 1, own_state),
        theirs.evaluate(widths, 1, state),
    )
    assert after["map"] == expected["map"]
    at_own = ours.evaluate({**widths, INPUT_SIZE: 128}, 0, None)[0]
    assert at_own["gflops"] > got["gflops"]
    assert {"loss", "features"} <= at_own.keys()
