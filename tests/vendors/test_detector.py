"""Tests of the convention that all detectors of other libraries share, on a vendor of one layer."""

import pytest
import torch
from torch import nn

from autoprune.detectors import resize_rule, resized
from autoprune.resize import Resize
from autoprune.vendors import DetectorTransform, VendorDetector


class Corner(VendorDetector):
    """Finds the box that its layer's bias holds, in pixels of the batch; the loss is the distance from it."""

    def raw(self, batch):
        return self.vendor(batch.tensors.mean((2, 3)))

    def losses(self, batch, targets):
        return {
            "distance": (self.raw(batch) - torch.stack([each["boxes"][0] for each in targets])).abs().sum()
        }

    def detections(self, raw, batch):
        return [{"boxes": box[None], "scores": torch.ones(1), "labels": torch.ones(1)} for box in raw]


@pytest.fixture
def detector():
    layer = nn.Linear(3, 4)
    layer.weight.data.zero_()
    layer.bias.data.copy_(torch.tensor([4.0, 8, 16, 24]))
    return Corner(layer, DetectorTransform(fixed_size=(32, 32)), ["", "child"])


IMAGES = [torch.rand(3, 64, 16), torch.rand(3, 32, 32)]


def test_detections_are_in_pixels_of_the_image(detector):
    first, second = detector.eval()(IMAGES)
    assert first["boxes"].tolist() == [[2, 16, 8, 48]]
    assert second["boxes"].tolist() == [[4, 8, 16, 24]]


@torch.no_grad()
def test_losses_get_boxes_in_pixels_of_the_batch(detector):
    targets = [{"boxes": torch.tensor([[2.0, 16, 8, 48]]), "labels": torch.tensor([1])} for _ in IMAGES]
    detector.train()
    assert float(detector(IMAGES[:1], targets[:1])["distance"]) == 0
    assert float(detector(IMAGES, targets)["distance"]) == abs(2 - 4) + abs(16 - 8) + abs(8 - 16) + abs(
        48 - 24
    )
    assert torch.equal(targets[0]["boxes"], torch.tensor([[2.0, 16, 8, 48]]))


def test_without_targets_training_mode_gives_the_vendors_outputs(detector):
    assert detector.train()(IMAGES).tolist() == [[4, 8, 16, 24]] * 2


def test_the_vendors_names_stand_behind_a_prefix(detector):
    assert set(detector.state_dict()) == {"vendor.weight", "vendor.bias"}
    assert detector.features == ("vendor.", "vendor.child")
    assert detector.unwrap() is detector.vendor


def test_its_input_size_can_be_read_and_set(detector):
    assert resize_rule(detector) == Resize(fixed=(32, 32))
    smaller = resized(detector, Resize(fixed=(16, 32)))
    assert smaller.eval()(IMAGES)[1]["boxes"].tolist() == [[4, 16, 16, 32]]
    assert detector.eval()(IMAGES)[1]["boxes"].tolist() == [[4, 8, 16, 24]]
