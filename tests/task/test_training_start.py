"""Starting weights against the masked detector and statistics by hand; the teacher against the dense one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.config import make_config
from autoprune.graph import mask, prune
from autoprune.task.pruning_task import load_task
from autoprune.task.training_start import make_teacher, reinitialize


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(make_config(**demo_settings))


@pytest.fixture(scope="module")
def keep(task):
    """Three of every four channels."""
    groups = task.graph.prunable.items()
    return {name: tuple(i for i in range(group.width) if i % 4) for name, group in groups}


def start(task, keep, seed=0, **settings):
    task = replace(task, config=task.config.model_copy(update=settings))
    return reinitialize(task, prune(task.model, task.graph, keep), keep, seed)


def norms(model):
    return {name: part for name, part in model.named_modules() if isinstance(part, nn.BatchNorm2d)}


def test_with_neither_it_is_the_masked_detector(task, keep):
    model = start(task, keep, reconstruct_images=0, recalibration_images=0)
    images, _ = task.val.batch([0, 1], "cpu")
    with torch.no_grad():
        batch = task.model.transform(images)[0].tensors
        pruned, masked = (
            each.head(list(each.backbone(batch).values()))
            for each in (model, mask(task.model, task.graph, keep))
        )
    for name, output in pruned.items():
        assert float((output - masked[name]).abs().max()) <= 1e-5 * float(masked[name].abs().max())


def test_recalibrated_statistics_are_the_means_over_the_images(task, keep):
    """Of the first norm, whose inputs no other norm changes; all images are used."""
    model = start(task, keep, reconstruct_images=0, recalibration_images=len(task.train))
    images, _ = task.train.batch(range(len(task.train)), "cpu")
    with torch.no_grad():
        outputs = model.backbone.body.conv1(task.model.transform(images)[0].tensors)
    first = model.backbone.body.bn1
    torch.testing.assert_close(first.running_mean, outputs.mean(dim=(0, 2, 3)), rtol=1e-4, atol=1e-5)
    pruned = prune(task.model, task.graph, keep)
    for name, weights in model.named_parameters():
        assert torch.equal(weights, pruned.get_parameter(name)), "weights stay as they are"


def test_reconstructed_layers_keep_the_dense_statistics(task, keep):
    model = start(task, keep, reconstruct_images=4, recalibration_images=8)
    pruned = norms(prune(task.model, task.graph, keep))
    for name, norm in norms(model).items():
        assert torch.equal(norm.running_mean, pruned[name].running_mean)
        assert torch.equal(norm.running_var, pruned[name].running_var)
    assert not torch.equal(
        model.backbone.body.layer1[0].conv1.weight,
        prune(task.model, task.graph, keep).backbone.body.layer1[0].conv1.weight,
    )


def test_reconstruction_lowers_the_loss_before_any_training(task, keep):
    """On validation images that it did not see, with the statistics of the dense detector."""
    losses = []
    for images in (0, 8):
        model = start(task, keep, reconstruct_images=images, recalibration_images=0).train()
        for norm in norms(model).values():
            norm.eval()
        with torch.no_grad():
            losses.append(sum(model(*task.val.batch(range(6), "cpu")).values()).item())
    assert losses[1] < 0.6 * losses[0]


def test_the_seed_decides_the_images(task, keep):
    one, again, other = (
        start(task, keep, seed, reconstruct_images=0, recalibration_images=2).backbone.body.bn1.running_mean
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_dense_detector_is_at_no_distance_from_its_teacher(task):
    teacher = make_teacher(task, {}, None)
    with torch.no_grad(), teacher.tap(task.model) as tap:
        task.model(task.val.batch([0, 1], "cpu")[0])
        losses = teacher.loss(tap.take())
    assert {name: value.item() for name, value in losses.items()} == {
        "features": pytest.approx(0, abs=1e-5),
        "head": pytest.approx(0, abs=1e-5),
    }


def test_what_the_teacher_weights_by(task, keep):
    importance = {name: np.ones(group.width) for name, group in task.graph.prunable.items()}

    def teacher(**settings):
        changed = replace(task, config=task.config.model_copy(update=settings))
        return make_teacher(changed, keep, importance)

    assert teacher().weighted
    assert not teacher(distill_weighting="none").weighted
    assert not make_teacher(task, keep, None).weighted
    assert teacher(distill=0.0) is None
    assert teacher(distill=0.0, distill_logits=1.0).logits
    assert not teacher().logits
