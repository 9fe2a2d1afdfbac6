"""A detector at another input size is the one that was built for it."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from autoprune.config import ModelSpec
from autoprune.detectors import build
from autoprune.errors import ModelError
from autoprune.resize import Resize, resize_rule, resized

SMALL = {"fpn_channels": 32, "returned_layers": [2, 3], "score_thresh": 0.001}


def retinanet(**arguments):
    spec = ModelSpec(name="retinanet_resnet18_fpn", arguments={**SMALL, **arguments}, num_classes=4)
    return build(spec).eval()


def test_resize_rule_is_the_detectors_own():
    assert resize_rule(retinanet(min_size=64, max_size=64)) == Resize(64, 64)
    assert resize_rule(nn.Conv2d(1, 1, 1)) is None
    ssd = build(ModelSpec(name="ssdlite320_mobilenet_v3_large", num_classes=2))
    assert resize_rule(ssd) == Resize(fixed=(320, 320))
    ssd.transform.fixed_size = (320, 200)  # torchvision: width, height
    rule = resize_rule(ssd)
    image, _ = ssd.transform([torch.rand(3, 40, 50)])
    assert image.image_sizes == [rule.fixed]


def test_several_training_sizes_give_the_one_of_evaluation():
    model = retinanet(min_size=[64, 80, 96], max_size=128)
    rule = resize_rule(model)
    image, _ = model.transform([torch.rand(3, 100, 100)])
    assert rule == Resize(96, 128)
    assert image.image_sizes == [(96, 96)]
    smaller = resized(model, Resize(48, 64))
    assert smaller.transform.min_size == [32, 40, 48]  # training draws one of them
    assert smaller.transform([torch.rand(3, 100, 100)])[0].image_sizes == [(48, 48)]


@pytest.mark.parametrize("image", [(50, 80), (96, 64)])
def test_it_computes_what_a_detector_built_for_the_size_does(image):
    dense, built = retinanet(min_size=96, max_size=160), retinanet(min_size=64, max_size=100)
    built.load_state_dict(dense.state_dict())
    smaller = resized(dense, Resize(64, 100))
    images = [torch.rand(3, *image)]
    with torch.no_grad():
        before, expected, got = dense(images)[0], built(images)[0], smaller(images)[0]
        assert len(expected["boxes"])
        for name, tensor in expected.items():
            assert torch.equal(got[name], tensor)
        assert torch.equal(dense(images)[0]["boxes"], before["boxes"]), "the detector itself is unchanged"
    assert resize_rule(dense) == Resize(96, 160)
    assert all(a is b for a, b in zip(dense.parameters(), smaller.parameters(), strict=True))


def test_a_fixed_size_is_stretched_to():
    dense = build(ModelSpec(name="ssdlite320_mobilenet_v3_large", num_classes=2)).eval()
    smaller = resized(dense, Resize(fixed=(224, 256)))
    assert smaller.transform([torch.rand(3, 40, 50)])[0].image_sizes == [(224, 256)]
    assert resize_rule(dense) == Resize(fixed=(320, 320))


def test_its_own_size_is_the_same_detector():
    dense = retinanet(min_size=64, max_size=64)
    assert resized(dense, None) is dense
    assert resized(dense, Resize(64, 64)) is dense


class ReadOnly:
    min_size = property(lambda self: 64)
    max_size = property(lambda self: 64)


class Stubborn(SimpleNamespace):
    def __setattr__(self, name, value):
        pass


@pytest.mark.parametrize(
    ("transform", "rule", "message"),
    [
        (None, Resize(32, 32), "needs a `transform` with `min_size` and `max_size`"),
        (SimpleNamespace(min_size=64, max_size=64), Resize(fixed=(32, 32)), "with `fixed_size` that can be"),
        (SimpleNamespace(fixed_size=(64, 64)), Resize(32, 32), "with `min_size` and `max_size` that can be"),
        (ReadOnly(), Resize(32, 32), "needs a `transform`"),
        (Stubborn(min_size=64, max_size=64), Resize(32, 32), "ignores another input size"),
    ],
)
def test_a_detector_whose_size_cannot_be_set_says_what_it_needs(transform, rule, message):
    model = nn.Conv2d(3, 3, 1)
    model.transform = transform
    with pytest.raises(ModelError, match=message) as caught:
        resized(model, rule)
    assert "\n" not in str(caught.value)
