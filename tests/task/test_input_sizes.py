"""The sizes that a search may choose from: their rules, their costs, and what is refused before it starts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from autoprune.config import ModelSpec
from autoprune.detectors import Resize, build, detector_inputs
from autoprune.errors import ConfigError
from autoprune.graph import analyze, prune
from autoprune.task.input_sizes import smaller_rules, trace_sizes

RESNET = {"fpn_channels": 32, "returned_layers": [2, 3]}
DETECTORS = {
    "retinanet_resnet18_fpn": {**RESNET, "min_size": 128, "max_size": 192},
    "fcos_resnet18_fpn": {**RESNET, "min_size": 128, "max_size": 128},
    "ssdlite320_mobilenet_v3_large": {},
    "fasterrcnn_mobilenet_v3_large_fpn": {
        "min_size": 128,
        "max_size": 128,
        "rpn_post_nms_top_n_test": 20,
        "rpn_pre_nms_top_n_test": 20,
    },
}


def detector(name="retinanet_resnet18_fpn", **arguments):
    spec = ModelSpec(name=name, arguments={**DETECTORS[name], **arguments}, num_classes=3)
    return build(spec).eval()


def test_sizes_are_multiples_of_the_stride_and_keep_the_ratio_of_the_sides():
    model = detector(min_size=800, max_size=1333)
    rules = smaller_rules(model, (1.0, 0.85, 0.7, 0.5), "it")
    assert rules == [Resize(672, 1120), Resize(576, 960), Resize(416, 694)]
    assert smaller_rules(model, (1.0,), "it") == []
    ssd = detector("ssdlite320_mobilenet_v3_large")  # it pads to nothing: 32, as its last stage
    assert smaller_rules(ssd, (1.0, 0.68), "it") == [Resize(fixed=(224, 224))]


@pytest.mark.parametrize("name", DETECTORS)
def test_costs_at_every_size_are_those_of_the_flop_counter(name):
    model = detector(name)
    own = (320, 320) if name.startswith("ssd") else (128, 128)
    graph = analyze(model, detector_inputs(own))
    fractions = (0.8, 0.5) if name.startswith("retinanet") else (0.75,)
    sizes = trace_sizes(model, graph, own, smaller_rules(model, (1.0, *fractions), name), name)
    assert len(sizes) == len(fractions)
    random = np.random.default_rng(0)
    keep = {
        group.name: np.sort(group.units[: random.integers(1, len(group.units) + 1)].ravel()).tolist()
        for group in graph.prunable.values()
    }
    widths = {group: len(kept) for group, kept in keep.items()}
    for size in sizes:
        same = {"min_size": size.pixels, "max_size": size.pixels}
        built = detector(name) if name.startswith("ssd") else detector(name, **same)
        if name.startswith("ssd"):
            built.transform.fixed_size = (size.pixels, size.pixels)
        pruned = prune(built, graph, keep)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            pruned(*detector_inputs(size.input_size))
        assert size.graph.gflops(widths) * 2e9 == counter.get_total_flops()
        assert size.graph.mparams(widths) == graph.mparams(widths)


@pytest.mark.parametrize(
    ("sizes", "arguments", "message"),
    [
        ((1.0, 0.1), {}, "0.1 of the 128 pixels of it is below the stride, 32"),
        ((1.0, 0.3), {"anchor_sizes": [48, 64, 96, 128]}, "below the smallest anchor, 48"),
        ((1.0, 0.8, 0.7), {}, r"0.7 of the 128 pixels of it is 96 pixels, as 0.8 is \(sizes are multiples"),
        ((1.0, 0.9), {}, "0.9 of the 128 pixels of it is 128 pixels, as 1 is"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes, arguments, message):
    with pytest.raises(ConfigError, match=message) as caught:
        smaller_rules(detector(**arguments), sizes, "it")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("input_sizes: ")


class Own(nn.Module):
    """A user's detector, whose rule says something and does not do it."""

    def __init__(self, **rule):
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1)
        if rule:
            self.transform = SimpleNamespace(**rule)

    def forward(self, images):
        return self.out(self.conv(torch.stack(images)))


def test_a_detector_without_a_size_to_set_is_told_what_it_must_offer():
    with pytest.raises(ConfigError, match="my:factory has no input size that can be set: it needs a `trans"):
        smaller_rules(Own(), (1.0, 0.5), "my:factory")


def test_a_detector_that_does_not_heed_its_rule_is_refused():
    model, inputs = Own(min_size=64, max_size=64).eval(), detector_inputs((64, 64))
    rules = smaller_rules(model, (1.0, 0.5), "it")
    graph = analyze(model, inputs)
    with pytest.raises(ConfigError, match="it at 32 pixels has no fewer GFLOPs"):
        trace_sizes(model, graph, (64, 64), rules, "it")


def test_a_detector_that_fails_at_a_size_is_refused_in_one_line():
    model = Own(min_size=64, max_size=64).eval()
    model.conv = nn.Conv2d(3, 8, 48)
    graph = analyze(model, detector_inputs((64, 64)))
    with pytest.raises(ConfigError, match="input_sizes: it at 32 pixels: ") as caught:
        trace_sizes(model, graph, (64, 64), [Resize(32, 32)], "it")
    assert "\n" not in str(caught.value)
