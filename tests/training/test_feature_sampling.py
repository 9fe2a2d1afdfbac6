import copy
from typing import Any

import numpy as np
import pytest
import torch

from autoprune.training import feature_sampling
from autoprune.training.feature_sampling import FeatureSampler, object_areas
from autoprune.vendors.transform import DetectorTransform

CPU = torch.device("cpu")


def test_half_of_the_positions_are_in_objects(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_sampling, "COUNT", 160)
    boxes = [np.array([[0.25, 0.0, 0.5, 0.5], [0.75, 0.5, 1.0, 1.0]]), np.zeros((0, 4))]
    sample = FeatureSampler(boxes, [(0.0, 0.0, 1.0, 1.0), (0.25, 0.0, 0.75, 1.0)], 0, CPU)
    image, row, column = (axis.numpy() for axis in sample(40, 40))
    assert (np.bincount(image) == 80).all()
    assert len({*zip(image, row, column, strict=True)}) == len(image)
    inside = ((column >= 10) & (column < 20) & (row < 20)) | ((column >= 30) & (row >= 20))
    assert inside[image == 0].sum() >= 40
    assert (~inside[image == 0]).sum() > 20
    assert ((row[image == 1] >= 10) & (row[image == 1] < 30)).all()  # above and below is padding
    assert len(sample(3, 3)[0]) == 9 + 3
    assert sample(40, 40)[0] is sample(40, 40)[0]


def test_boxes_are_fractions_of_the_padded_batch(toy: Any) -> None:
    images = [
        torch.rand(3, 16, 16),
        torch.rand(3, 16, 8),
    ]  # the second is stretched to 32 x 16, cut to 16 x 8
    targets = [{"boxes": torch.tensor([[2.0, 4.0, 6.0, 16.0]]), "labels": torch.tensor([1])} for _ in images]
    boxes, areas = object_areas(toy, images, targets)
    batch = toy.transform(images)[0]
    height, width = batch.tensors.shape[-2:]
    for (box,), area, size, image in zip(boxes, areas, batch.image_sizes, images, strict=True):
        assert area == pytest.approx((0, 0, size[0] / height, size[1] / width))
        ratio = size[1] / image.shape[2] / width, size[0] / image.shape[1] / height
        assert box == pytest.approx([2 * ratio[0], 4 * ratio[1], 6 * ratio[0], 16 * ratio[1]])


def test_images_in_the_middle_of_a_batch_are_sampled_where_they_are(toy: Any) -> None:
    """What vendors' letterboxes do; against the pixels of the batch, which are 0 in the padding alone."""
    model = copy.deepcopy(toy)
    model.transform = DetectorTransform(min_size=64, max_size=64, size_divisible=32, placement="center")
    images = [torch.rand(3, 60, 64) * 0.5 + 0.5, torch.rand(3, 64, 20) * 0.5 + 0.5]
    targets = [{"boxes": torch.zeros(0, 4), "labels": torch.zeros(0)} for _ in images]
    batch = model.transform(images)[0].tensors
    boxes, areas = object_areas(model, images, targets)
    size = batch.shape[-2:]
    image, row, column = FeatureSampler(boxes, areas, 0, CPU, count=10_000)(*size)
    sampled = torch.zeros(len(images), *size, dtype=torch.bool)
    sampled[image, row, column] = True
    assert not sampled.all()
    assert torch.equal(sampled, (batch != 0).all(1))
