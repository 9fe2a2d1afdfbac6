import torch
from torch import nn

from autoprune import detectors
from autoprune.config import ModelSpec

from .conftest import small


def test_resize_rule_is_the_detectors_own():
    assert detectors.resize_rule(small()) == detectors.Resize(64, 64)
    assert detectors.resize_rule(nn.Conv2d(1, 1, 1)) is None
    ssd = detectors.build(ModelSpec(name="ssdlite320_mobilenet_v3_large", num_classes=2))
    assert detectors.resize_rule(ssd) == detectors.Resize(fixed=(320, 320))
    ssd.transform.fixed_size = (320, 200)  # torchvision: width, height
    rule = detectors.resize_rule(ssd)
    image, _ = ssd.transform([torch.rand(3, 40, 50)])
    assert image.image_sizes == [rule.fixed]


def test_several_training_sizes_give_the_one_of_evaluation():
    model = detectors.build(
        ModelSpec(
            name="retinanet_resnet18_fpn",
            arguments={"min_size": [64, 80, 96], "max_size": 128},
            num_classes=2,
        )
    ).eval()
    rule = detectors.resize_rule(model)
    image, _ = model.transform([torch.rand(3, 100, 100)])
    assert rule == detectors.Resize(96, 128)
    assert image.image_sizes == [(96, 96)]


def test_detector_inputs_fit_the_call():
    model = small().eval()
    (images,) = detectors.detector_inputs((48, 64))
    assert [tuple(image.shape) for image in images] == [(3, 48, 64)]
    assert isinstance(model(images), list)
