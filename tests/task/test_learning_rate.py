import pytest

from autoprune.config import make_config
from autoprune.data.evaluate import evaluate
from autoprune.space.input_size import INPUT_SIZE
from autoprune.task import evaluator as evaluator_module
from autoprune.task.learning_rate import LEAST, MOST, PER_LOSS, PER_RESIZING, recovery_rate
from autoprune.task.pruning_task import load_task

from .test_evaluator import make_evaluator


def test_it_is_proportional_to_the_fraction_that_was_lost_between_two_bounds():
    assert recovery_rate(0.3, 0.4) == pytest.approx(PER_LOSS / 4, rel=0.05)
    assert recovery_rate(0.03, 0.04) == recovery_rate(0.3, 0.4)  # a hard data set is no other matter
    assert recovery_rate(0.4, 0.4) == recovery_rate(0.5, 0.4) == LEAST
    assert recovery_rate(0.0, 0.4) == recovery_rate(0.0, 0.0) == MOST


def test_what_an_input_size_costs_is_added_and_counts_less():
    assert recovery_rate(0.3, 0.3, 0.4) == pytest.approx(PER_RESIZING / 4, rel=0.05)
    assert recovery_rate(0.2, 0.3, 0.4) == pytest.approx(PER_LOSS / 3 + PER_RESIZING / 4, rel=0.05)
    assert recovery_rate(0.3, 0.4, 0.4) == recovery_rate(0.3, 0.4, 0.35) == recovery_rate(0.3, 0.4)


@pytest.mark.parametrize("rungs", [(0, 1, 2), (1, 2)])
def test_each_rung_of_a_trial_is_trained_at_the_rate_of_what_is_lost_before_it(
    demo_settings, monkeypatch, rungs
):
    """Of mAPs that `evaluate` gives here, on the detectors that training starts from."""
    task = load_task(make_config(**{**demo_settings, "rungs": rungs, "criterion": "l2"}))
    before, rates = [], []

    def recorded(model, split, settings, *others, **options):
        before.append(evaluate(model, task.val, batch_size=2).map)
        rates.append(settings.learning_rate)
        return train(model, split, settings, *others, **options)

    train = evaluator_module.train
    monkeypatch.setattr(evaluator_module, "train", recorded)
    work, state = make_evaluator(task), None
    widths = {name: group.width // 2 for name, group in task.graph.prunable.items()}
    widths = {name: widths[name] for name in work.space.names}
    for rung in range(len(rungs)):
        _, state = work.evaluate(widths, rung, state)
    dense = evaluate(task.model, task.val, batch_size=2).map
    assert work.dense_map == dense
    assert rates == [recovery_rate(value, dense) for value in before]
    assert len(rates) == 2


def test_at_a_smaller_input_size_the_dense_detector_counts_at_both_sizes(demo_settings, monkeypatch):
    settings = {**demo_settings, "rungs": (1,), "criterion": "l2", "input_sizes": (1.0, 0.5)}
    task = load_task(make_config(**settings))
    small, rates = task.at(64), []

    def recorded(model, split, settings, *others, **options):
        rates.append((evaluate(model, small.val, batch_size=2).map, settings.learning_rate))
        return train(model, split, settings, *others, **options)

    train = evaluator_module.train
    monkeypatch.setattr(evaluator_module, "train", recorded)
    work = make_evaluator(task)
    widths = {name: group.width // 2 for name, group in task.graph.prunable.items()}
    work.evaluate({**{name: widths[name] for name in work.space.names}, INPUT_SIZE: 64}, 0, None)
    ((before, rate),) = rates
    dense = evaluate(small.model, small.val, batch_size=2).map
    full_size = evaluate(task.model, task.val, batch_size=2).map
    assert dense != full_size
    assert rate == recovery_rate(before, dense, full_size)
