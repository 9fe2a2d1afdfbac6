import pytest
import torch
from torch import nn

from autoprune import detectors
from autoprune.detectors.inputs import network_size, size_text
from autoprune.vendors import DetectorTransform

from .conftest import small


def test_detector_inputs_fit_the_call():
    model = small().eval()
    (images,) = detectors.detector_inputs((48, 64))
    assert [tuple(image.shape) for image in images] == [(3, 48, 64)]
    assert isinstance(model(images), list)


@pytest.mark.parametrize("size", [(48, 64), (64, 64), (100, 30), (200, 333)])
def test_the_size_that_the_network_sees_is_that_of_the_batch_its_backbone_gets(size):
    model, seen = small().eval(), []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    with torch.no_grad():
        model(*detectors.detector_inputs(size))
    assert network_size(model, size) == seen[0]


def test_a_detector_whose_transform_says_nothing_sees_the_image():
    model = nn.Module()
    assert network_size(model, (48, 64)) == (48, 64)
    model.transform = nn.Identity()
    assert network_size(model, (48, 64)) == (48, 64)
    model.transform = DetectorTransform(min_size=96, max_size=96, size_divisible=32)  # letterbox: 72 x 96
    assert network_size(model, (48, 64)) == (96, 96)
    assert size_text(model, (48, 64)) == "48x64, which the detector itself makes 96x96"
    assert size_text(model, (96, 96)) == "96x96"
