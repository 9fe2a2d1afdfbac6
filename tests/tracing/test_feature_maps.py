"""Which feature maps a trace has the channels of."""

import torch
from torch import nn

from autoprune.tracing.trace import trace

IMAGES = torch.rand(2, 3, 8, 8)


def test_features_are_the_maps_that_direct_children_return(residual):
    traced = trace(residual(), (IMAGES,))
    lengths = {name: [length for _, length in maps] for name, maps in traced.features.items() if maps}
    assert lengths == {"stem": [8], "norm": [8], "inner": [6], "outer": [8]}
    ((axis, _),) = traced.features["stem"]
    assert axis is traced.axes["stem.weight", 0]


class Detector(nn.Module):
    """A backbone that names what it returns, and a head that gets it by keyword, twice."""

    features = ("body.stem",)

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential()
        self.body.stem, self.body.top = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 5, 1)
        self.head = nn.ModuleDict({"out": nn.Conv2d(5, 2, 1)})
        self.head.forward = lambda maps: self.head["out"](maps["top"])

    def forward(self, x):
        maps = {"top": self.body(x)}
        return self.head(maps=maps), self.head(maps={"top": maps["top"][..., :4]})


def test_named_features_and_what_the_head_reads_are_those_of_the_first_call():
    traced = trace(Detector(), (IMAGES,))
    assert {name: [n for _, n in maps] for name, maps in traced.features.items()} == {
        "body": [5], "head": [2], "body.stem": [6]
    }  # fmt: skip
    assert {name: [n for _, n in maps] for name, maps in traced.read.items()} == {"body": [3], "head": [5]}
    ((axis, _),) = traced.read["head"]
    assert axis is traced.axes["body.top.weight", 0]
