import numpy as np
import pytest
import torch

from autoprune.config import make_config
from autoprune.graph import prune
from autoprune.policy import hash_weights
from autoprune.task.probe import Probe
from autoprune.task.pruning_task import load_subject


@pytest.fixture(scope="module")
def subject(demo_settings):
    return load_subject(make_config(**{**demo_settings, "batch_size": 3}))


@pytest.fixture(scope="module")
def keep(subject):
    """The first three quarters of every group."""
    return {
        name: tuple(sorted(group.units[: len(group.units) * 3 // 4].ravel().tolist()))
        for name, group in subject.graph.prunable.items()
    }


def test_the_dense_detector_is_at_no_distance_from_itself(subject):
    assert Probe(subject)(subject.model, {})["features"] == pytest.approx(0, abs=1e-5)


def test_the_loss_is_the_detectors_own(subject):
    before = hash_weights(subject.model.state_dict())
    found = Probe(subject)(subject.model, {})["loss"]
    assert hash_weights(subject.model.state_dict()) == before
    assert not subject.model.training
    model = subject.model.train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.eval()
    with torch.no_grad():
        losses = [sum(model(*subject.val.batch(part, "cpu")).values()) for part in ([0, 1, 2], [3, 4, 5])]
    model.eval()
    assert found == pytest.approx(float(sum(losses)) / 2, rel=1e-5)


def test_the_distance_is_one_less_the_correlation_of_each_kept_channel(subject, keep):
    pruned = prune(subject.model, subject.graph, keep)
    found = Probe(subject)(pruned, keep)["features"]
    batches = []
    for part in ([0, 1, 2], [3, 4, 5]):
        images = subject.model.transform(subject.val.batch(part, "cpu")[0])[0].tensors
        with torch.no_grad():
            dense, ours = (model.backbone(images).values() for model in (subject.model, pruned))
        total = 0.0
        outputs = subject.graph.features["backbone"]
        for (group, index), theirs, mine in zip(outputs, dense, ours, strict=True):
            kept = [place for place, channel in enumerate(index) if channel in keep[group]]
            correlations = [
                np.corrcoef(theirs[:, place].flatten().numpy(), mine[:, number].flatten().numpy())[0, 1]
                for number, place in enumerate(kept)
            ]
            total += 1 - float(np.mean(correlations))
        batches.append(total)
    assert found == pytest.approx(np.mean(batches), rel=2e-3)  # the dense features are kept in half precision


def test_it_looks_at_few_images_from_all_over_and_gives_the_same_numbers_again(
    demo_settings, keep, monkeypatch
):
    monkeypatch.setattr("autoprune.task.probe.IMAGES", 3)
    subject = load_subject(make_config(**{**demo_settings, "proxy_images": 5}))
    seen, batch = [], type(subject.val).batch
    monkeypatch.setattr(
        type(subject.val),
        "batch",
        lambda self, indices, *more: seen.extend(indices) or batch(self, indices, *more),
    )
    probe, pruned = Probe(subject), prune(subject.model, subject.graph, keep)
    first = probe(pruned, keep)
    assert set(seen) == {0, 2, 4}
    assert len(seen) == 6  # once for the dense detector, once for the pruned one
    assert probe(pruned, keep) == first
    assert len(seen) == 9
