import copy
from typing import Any

import numpy as np
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from autoprune.training import recalibrate

CPU = torch.device("cpu")


def inputs_of_the_first_norm(model: Any, split: Any, indices: list[int]) -> np.ndarray[Any, Any]:
    images, _ = model.transform([split.images[index] for index in indices])
    return model.backbone.conv1(images.tensors).detach().double().numpy()


def test_statistics_are_those_of_the_data(toy: Any, split: Any) -> None:
    recalibrated = recalibrate(toy, split, images=10, batch_size=10, device=CPU, seed=0)
    values = inputs_of_the_first_norm(toy, split, list(range(10)))
    norm = recalibrated.backbone.norm1
    np.testing.assert_allclose(norm.running_mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(norm.running_var, values.var((0, 2, 3), ddof=1), rtol=1e-4)


def test_batches_count_equally(toy: Any, split: Any) -> None:
    recalibrated = recalibrate(toy, split, images=9, batch_size=4, device=CPU, seed=1)
    batches = [indices for indices, _ in split.calls]
    assert [len(batch) for batch in batches] == [3, 3, 3]
    assert len({index for batch in batches for index in batch}) == 9
    values = [inputs_of_the_first_norm(toy, split, batch) for batch in batches]
    norm = recalibrated.backbone.norm1
    expected = np.mean([batch.mean((0, 2, 3)) for batch in values], axis=0)
    np.testing.assert_allclose(norm.running_mean, expected, rtol=1e-4, atol=1e-6)
    expected = np.mean([batch.var((0, 2, 3), ddof=1) for batch in values], axis=0)
    np.testing.assert_allclose(norm.running_var, expected, rtol=1e-4)


def test_only_statistics_change_and_only_in_the_copy(toy: Any, split: Any) -> None:
    before = {name: value.clone() for name, value in toy.state_dict().items()}
    recalibrated = recalibrate(toy, split, images=8, batch_size=4, device=CPU, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in toy.state_dict().items())
    changed = {
        name for name, value in recalibrated.state_dict().items() if not torch.equal(value, before[name])
    }
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    assert changed == {f"backbone.norm{which}.{name}" for which in (1, 2) for name in statistics}
    assert recalibrated.backbone.norm1.momentum == toy.backbone.norm1.momentum == 0.1
    assert not any(module.training for module in recalibrated.modules())
    assert toy.training
    assert all(p.requires_grad for p in recalibrated.parameters())


def test_a_detector_with_norms_in_its_head_passes_them_all(toy: Any, split: Any) -> None:
    toy.head = nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 5))
    recalibrated = recalibrate(toy, split, images=8, batch_size=4, device=CPU, seed=0)
    assert recalibrated.head[0].num_batches_tracked == 2
    assert recalibrated.dropout.training is False


def test_only_the_norms_behind_some_layers(toy: Any, split: Any) -> None:
    convolutions = {name for name, module in toy.named_modules() if isinstance(module, nn.Conv2d)}
    assert "backbone.conv1" in convolutions
    before = toy.state_dict()
    recalibrated = recalibrate(toy, split, 10, batch_size=10, device=CPU, seed=0, behind={"backbone.conv1"})
    values = inputs_of_the_first_norm(toy, split, list(range(10)))
    np.testing.assert_allclose(
        recalibrated.backbone.norm1.running_mean, values.mean((0, 2, 3)), rtol=1e-4, atol=1e-6
    )
    assert torch.equal(recalibrated.backbone.norm2.running_mean, before["backbone.norm2.running_mean"])
    assert recalibrated.backbone.norm2.num_batches_tracked == toy.backbone.norm2.num_batches_tracked


def test_without_batch_norm_or_images_nothing_happens(toy: Any, split: Any) -> None:
    frozen = copy.deepcopy(toy)
    frozen.backbone.norm1, frozen.backbone.norm2 = FrozenBatchNorm2d(6), FrozenBatchNorm2d(6)
    for model, images in ((frozen, 8), (toy, 0)):
        recalibrated = recalibrate(model, split, images=images, batch_size=4, device=CPU, seed=0)
        assert split.calls == []
        assert recalibrated is not model
        expected = model.state_dict()
        assert all(torch.equal(value, expected[name]) for name, value in recalibrated.state_dict().items())
