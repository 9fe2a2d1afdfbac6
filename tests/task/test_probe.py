import numpy as np
import pytest
import torch

from autoprune.config import make_config
from autoprune.graph import prune
from autoprune.policy import hash_weights
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import load_task


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**{**demo_settings, "batch_size": 3}))


@pytest.fixture(scope="module")
def keep(task):
    """The first three quarters of every group."""
    return {
        name: tuple(sorted(group.units[: len(group.units) * 3 // 4].ravel().tolist()))
        for name, group in task.graph.prunable.items()
    }


def test_the_dense_detector_is_at_no_distance_from_itself(task):
    assert Probe(task)(task.model, {})["features"] == pytest.approx(0, abs=1e-5)


def test_the_loss_is_the_detectors_own(task):
    before = hash_weights(task.model.state_dict())
    measured = Probe(task)(task.model, {})["loss"]
    assert hash_weights(task.model.state_dict()) == before
    assert not task.model.training
    model = task.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        losses = [sum(model(*task.val.batch(part, "cpu")).values()) for part in ([0, 1, 2], [3, 4, 5])]
    model.eval()
    assert measured == pytest.approx(float(sum(losses)) / 2, rel=1e-5)


def test_the_distance_is_one_less_the_correlation_of_each_kept_channel(task, keep):
    pruned = prune(task.model, task.graph, keep)
    measured = Probe(task)(pruned, keep)["features"]
    batches = []
    for part in ([0, 1, 2], [3, 4, 5]):
        images = task.model.transform(task.val.batch(part, "cpu")[0])[0].tensors
        with torch.no_grad():
            dense, ours = (model.backbone(images).values() for model in (task.model, pruned))
        total = 0.0
        outputs = task.graph.features["backbone"]
        for (group, index), theirs, mine in zip(outputs, dense, ours, strict=True):
            kept = [place for place, channel in enumerate(index) if channel in keep[group]]
            correlations = [
                np.corrcoef(theirs[:, place].flatten().numpy(), mine[:, number].flatten().numpy())[0, 1]
                for number, place in enumerate(kept)
            ]
            total += 1 - float(np.mean(correlations))
        batches.append(total)
    assert measured == pytest.approx(
        np.mean(batches), rel=2e-3
    )  # the dense features are kept in half precision


def test_it_looks_at_few_images_from_all_over_and_gives_the_same_numbers_again(
    demo_settings, keep, monkeypatch
):
    monkeypatch.setattr("autoprune.task.probe.IMAGES", 3)
    task = load_task(make_config(**{**demo_settings, "proxy_images": 5}))
    seen, batch = [], type(task.val).batch
    monkeypatch.setattr(
        type(task.val),
        "batch",
        lambda self, indices, *more: seen.extend(indices) or batch(self, indices, *more),
    )
    probe, pruned = Probe(task), prune(task.model, task.graph, keep)
    first = probe(pruned, keep)
    assert set(seen) == {0, 2, 4}
    assert len(seen) == 6  # once for the dense detector, once for the pruned one
    assert probe(pruned, keep) == first
    assert len(seen) == 9
