"""Which groups the recorded ops name, and which layers count as predictions."""

import torch
from torch import nn
from torch.nn import functional as F

from autoprune.graph import analyze


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.side = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 4, 1)
        self.join, self.many, self.one = nn.Conv2d(12, 6, 1), nn.Conv2d(6, 5, 1), nn.Conv2d(6, 1, 1)

    def forward(self, x):
        x = F.relu(self.join(torch.cat([self.stem(x), self.side(x)], 1)))
        return self.many(x), self.one(x)


def test_ops_name_the_groups_on_their_axes():
    paths = analyze(Net(), (torch.rand(1, 3, 4, 4),)).paths
    groups = [set(op.groups) for op in paths.ops]
    assert {"stem", "side"} in groups  # the concatenation
    joined = next(op for op in paths.ops if op.groups == {"stem", "side"})
    assert [read.axes for read in joined.reads] == [(frozenset({"stem"}),), (frozenset({"side"}),)]
    assert joined.outputs == ((frozenset({"stem", "side"}),),)
    assert all(read.groups == axes for read in joined.reads for axes in read.axes)


def test_predictions_are_layers_whose_channels_none_reads_or_that_make_one():
    paths = analyze(Net(), (torch.rand(1, 3, 4, 4),)).paths
    assert [op.prediction for op in paths.ops if op.prediction] == ["many", "one"]
    assert len(paths.ends) == 2


def test_positions_of_a_transformer_are_no_predictions():
    """A position embedding has a parameter axis that no layer reads."""

    class Placed(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.places = nn.Linear(3, 8), nn.Parameter(torch.rand(1, 5, 8))
            self.inner, self.outer, self.head = nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 2)

        def forward(self, x):
            x = self.stem(x) + self.places
            return self.head(x + self.outer(self.inner(x).relu()))

    graph = analyze(Placed(), (torch.rand(1, 5, 3),))
    assert [op.prediction for op in graph.paths.ops if op.prediction] == ["head"]
    assert graph.groups["inner"].can_empty
