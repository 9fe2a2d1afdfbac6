"""What a smaller size counts for, from losses that a test makes up."""

import pytest

from autoprune.config import make_config
from autoprune.cost.budget import Budget
from autoprune.detectors import resize_rule
from autoprune.space.derive import derive_space
from autoprune.space.one_shot import greedy
from autoprune.space.resolve import resolve
from autoprune.space.width_options import removed_by
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import load_task
from autoprune.task.scoring import score_channels
from autoprune.task.size_scores import size_importance


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**{**demo_settings, "criterion": "taylor"}, input_sizes=(1.0, 0.75, 0.5)))


@pytest.fixture(scope="module")
def space(task):
    scores = score_channels(task, "taylor")
    file = derive_space(task.graph, scores, task.spec, task.input_size, "taylor")
    return resolve(file, task.graph, scores)


@pytest.fixture
def losses(monkeypatch, task):
    """Makes up the loss of detectors by input size, and of pruned ones; counts how many were measured."""

    def set_losses(dense, pruned):
        measured = []

        def loss(self, model):
            size = resize_rule(model).pixels
            whole = sum(p.numel() for p in model.parameters()) == 1e6 * task.graph.mparams()
            measured.append(size)
            return dense.get(size) if whole else pruned

        monkeypatch.setattr(Probe, "loss", loss)
        return measured

    return set_losses


def equal_cost(task, space, pixels):
    """Importance that the greedy order removes until it has the GFLOPs of the dense detector at a size."""
    limit = max(task.at(pixels).graph.gflops(), float(space.cost("gflops", space.lowest)))
    start = greedy(space, space.importance, (Budget("gflops", limit),), "taylor")
    return removed_by(space, space.importance, space.as_array(start.widths))


def test_a_size_counts_as_channels_of_its_cost_times_how_much_more_the_loss_rises(task, space, losses):
    losses({128: 1.0, 96: 1.06, 64: 1.5}, pruned=1.02)
    scores = size_importance(task, space, "taylor")
    assert scores[96] == pytest.approx(3 * equal_cost(task, space, 96), rel=0.02)
    assert scores[64] == pytest.approx(8 * equal_cost(task, space, 64), rel=0.02)  # 25, and 8 is the most


def test_a_smaller_size_never_counts_for_less(task, space, losses):
    losses({128: 1.0, 96: 1.8, 64: 1.0}, pruned=1.1)
    scores = size_importance(task, space, "taylor")
    assert scores[64] == scores[96] > 0


def test_without_losses_a_size_counts_as_the_channels_of_its_cost(task, space, losses):
    losses({}, pruned=None)
    scores = size_importance(task, space, "taylor")
    assert scores[96] == pytest.approx(equal_cost(task, space, 96), rel=0.02)


def test_losses_are_measured_once(task, space, losses, tmp_path):
    file = tmp_path / "importance.safetensors"
    measured = losses({128: 1.0, 96: 1.06, 64: 1.5}, pruned=1.02)
    first = size_importance(task, space, "taylor", file)
    assert sorted(measured) == [64, 96, 128, 128, 128]  # twice a pruned detector at the own size
    assert size_importance(task, space, "taylor", file) == first
    assert len(measured) == 5
