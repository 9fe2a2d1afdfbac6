import numpy as np
import pytest
import torch

from autoprune.config import make_config
from autoprune.data.evaluate import evaluate
from autoprune.errors import BudgetError, ConfigError, TrainingError
from autoprune.graph import mask, prune
from autoprune.importance import score, score_together
from autoprune.policy import hash_weights
from autoprune.task import evaluator as module
from autoprune.task import pruning_task as task_module
from autoprune.task.evaluator import PolicyEvaluator
from autoprune.task.pruning_task import load_task, pick_device, score_channels, score_several


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**demo_settings, criterion="l2"))


@pytest.fixture(scope="module")
def importance(task):
    return score_channels(task, "l2")


@pytest.fixture(scope="module")
def keep(task, importance):
    """Three quarters of every group, the least important gone."""
    kept = {}
    for name, group in task.graph.prunable.items():
        best = np.argsort(-importance[name], kind="stable")[: group.width * 3 // 4]
        kept[name] = tuple(sorted(int(channel) for channel in best))
    return kept


def test_the_same_policy_gives_the_same_numbers_and_leaves_the_dense_detector_alone(task, importance, keep):
    before = hash_weights(task.model.state_dict())
    runs = []
    for work in (PolicyEvaluator(task, importance), PolicyEvaluator(task, importance)):
        first, state = work.evaluate(keep, 0, None)
        second, _ = work.evaluate(keep, 1, state)
        runs.append([(m["map"], m["map50"], m["gflops"]) for m in (first, second)])
    assert runs[0] == runs[1]
    repeated = [work.evaluate(keep, 0, None, repeat)[0] for repeat in (1, 1, 2)]
    assert repeated[0]["map"] == repeated[1]["map"]
    assert len({runs[0][0][0], repeated[0]["map"], repeated[2]["map"]}) == 3  # each has a seed of its own
    assert runs[0][0] != runs[0][1]  # a step of training changed something
    assert hash_weights(task.model.state_dict()) == before


@pytest.mark.parametrize(("rate", "better"), [(1e-3, True), (0.05, False)])
def test_a_rung_never_leaves_a_detector_worse(demo_settings, keep, rate, better, monkeypatch):
    """As it was measured before and after by `evaluate`, on the detectors that the rungs had."""
    maps = []

    def told(*arguments, **more):
        maps.append(evaluate(*arguments, **more).map)
        return evaluate(*arguments, **more)

    monkeypatch.setattr(module, "evaluate", told)
    task = load_task(make_config(**{**demo_settings, "learning_rate": rate, "rungs": (0, 2, 4)}))
    work, state, found = PolicyEvaluator(task, score_channels(task, "l2")), None, []
    for rung in range(3):
        before = state
        metrics, state = work.evaluate(keep, rung, state)
        found.append(metrics["map"])
        assert evaluate(state, task.val, batch_size=2).map == found[-1] == max(maps)
        if not better and rung:
            assert state is before
    assert (maps[1] > maps[0]) == better


def test_without_recovery_it_is_the_masked_detectors_map(demo_settings, keep):
    config = make_config(
        **{**demo_settings, "reconstruct_images": 0, "recalibration_images": 0, "criterion": "l2"}
    )
    task = load_task(config)
    metrics, _ = PolicyEvaluator(task, score_channels(task, "l2")).evaluate(keep, 0, None)
    masked = evaluate(mask(task.model, task.graph, keep), task.val, batch_size=2)
    assert metrics["map"] == pytest.approx(masked.map, abs=1e-3)


def test_costs_are_those_of_the_pruned_module(task, importance, keep):
    metrics, model = PolicyEvaluator(task, importance).evaluate(keep, 0, None)
    assert metrics["mparams"] == sum(p.numel() for p in model.parameters()) / 1e6
    assert {name for name in metrics if name.endswith("_s")} == {"training_s", "evaluation_s", "other_s"}


def test_a_loss_that_is_not_finite_is_the_trials_own_failure(demo_settings, keep):
    config = make_config(**{**demo_settings, "learning_rate": 1e30, "rungs": (3,), "criterion": "l2"})
    task = load_task(config)
    with pytest.raises(TrainingError, match="not finite at step"):
        PolicyEvaluator(task, score_channels(task, "l2")).evaluate(keep, 0, None)


def test_memory_that_runs_out_is_the_trials_own_failure(task, importance, keep, monkeypatch):
    def no_memory(*args, **arguments):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(module, "evaluate", no_memory)
    with pytest.raises(TrainingError, match="out of memory evaluating at rung 0; lower batch_size"):
        PolicyEvaluator(task, importance).evaluate(keep, 0, None)


def test_a_latency_budget_above_the_dense_detector_is_refused(demo_settings, importance):
    task = load_task(make_config(**demo_settings, criterion="l2", budget_latency_ms="1000000"))
    with pytest.raises(BudgetError, match="budget_latency_ms"):
        PolicyEvaluator(task, importance)


def test_the_policy_of_a_subject_prunes_as_its_keep_does(task, keep):
    policy = task.policy(keep, {"map": 0.5})
    applied, pruned = policy.apply(task.model), prune(task.model, task.graph, keep)
    ours, theirs = applied.state_dict(), pruned.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_importance_is_computed_once_for_the_same_settings(demo_settings, tmp_path, monkeypatch):
    calls = []

    def counted(criteria, *args):
        calls.extend(criteria)
        return score(criteria, *args)

    score = task_module.score_together
    monkeypatch.setattr(task_module, "score_together", counted)
    file = tmp_path / "importance.safetensors"
    first = load_task(make_config(**demo_settings))
    scores = [score_channels(first, "taylor", file) for _ in range(2)]
    assert calls == ["taylor"]
    assert all(np.array_equal(scores[0][name], scores[1][name]) for name in scores[0])
    more = load_task(make_config(**{**demo_settings, "importance_images": 3}))
    score_channels(more, "taylor", file)
    assert calls == ["taylor", "taylor"]


def test_criteria_in_one_pass_are_each_what_it_is_alone(task, tmp_path):
    file = tmp_path / "importance.safetensors"
    images = [task.train.batch([index], task.device) for index in (0, 3)]
    together = score_together(("joint", "taylor", "fisher", "l2"), task.model, task.graph, lambda: images)
    for criterion, scores in together.items():
        alone = score(criterion, task.model, task.graph, lambda: images)
        assert all(np.array_equal(alone[name], scores[name]) for name in alone)
    several = score_several(task, ("joint", "l2"), file)
    assert all(np.array_equal(several["joint"][n], s) for n, s in score_channels(task, "joint", file).items())


def test_a_device_that_is_not_there_is_refused(demo_settings):
    with pytest.raises(ConfigError, match="device 'abacus' can't be used here"):
        pick_device(make_config(**{**demo_settings, "device": "abacus"}))
