"""Attributes of torch's layers after pruning."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.graph import analyze, prune
from autoprune.modules.module_sizes import following, follows, may_have_sizes

X = torch.rand(1, 3, 6, 6)


def test_modules_say_their_true_sizes():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 1, groups=8),
                          nn.PReLU(8),
                          nn.ConvTranspose2d(8, 10, 2), nn.InstanceNorm2d(10, affine=True),
                          nn.Conv2d(10, 4, 1), nn.Flatten(), nn.Linear(4 * 25, 7),
                          nn.Linear(7, 2))  # fmt: skip
    graph = analyze(model, (X,))
    pruned = prune(model, graph, {"0": [0, 1, 6, 7], "4": [9], "6": [1, 2], "8": [0, 6]})
    assert (pruned[0].in_channels, pruned[0].out_channels) == (3, 4)
    assert (pruned[1].num_groups, pruned[1].num_channels) == (2, 4)
    assert (pruned[2].in_channels, pruned[2].out_channels, pruned[2].groups) == (4, 4, 4)
    assert pruned[3].num_parameters == 4
    assert (pruned[4].in_channels, pruned[4].out_channels) == (4, 1)
    assert pruned[5].num_features == 1
    assert (pruned[6].in_channels, pruned[6].out_channels) == (1, 2)
    assert (pruned[8].in_features, pruned[8].out_features, pruned[9].in_features) == (2 * 25, 2, 2)
    assert model[0].weight.shape == (8, 3, 3, 3)


def test_only_layers_with_tensors_and_attentions_have_sizes():
    kinds = {nn.ReLU(): False, nn.Linear(2, 2): True, nn.BatchNorm2d(3): True, nn.Sequential(): False,
             nn.MultiheadAttention(4, 2): True}  # fmt: skip
    assert {kind: may_have_sizes(kind) for kind in kinds} == kinds


def test_the_number_of_groups_follows_a_weight_of_the_module_itself():
    assert follows(nn.Conv2d(4, 4, 1, groups=2))
    assert follows(nn.GroupNorm(2, 4))
    assert not follows(nn.GroupNorm(2, 4, affine=False))
    assert not follows(nn.Linear(2, 2))


class Called(nn.Module):
    """Grouped layers between two convolutions, by ``how``: each called itself, or its weight alone."""

    def __init__(self, how):
        super().__init__()
        self.enter, self.leave, self.how = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), how
        self.norm, self.conv = nn.GroupNorm(4, 8), nn.Conv2d(8, 8, 1, groups=8)

    def forward(self, x):
        return self.leave(self.how(self, self.enter(x)))


@pytest.mark.parametrize(
    ("how", "prunable"),
    [
        (lambda m, x: m.conv(m.norm(x)), True),
        (lambda m, x: F.group_norm(x, 4, m.norm.weight, m.norm.bias), False),
        (lambda m, x: F.group_norm(x, m.norm.num_groups, m.norm.weight, m.norm.bias), True),
        (lambda m, x: F.conv2d(x, m.conv.weight, m.conv.bias, groups=8), False),
        (lambda m, x: F.conv2d(x, m.conv.weight, m.conv.bias, groups=m.conv.groups), True),
        (lambda m, x: F.conv2d(m.conv(x), m.conv.weight, m.conv.bias, groups=8), False),
    ],
)
def test_a_number_of_groups_in_the_code_does_not_follow(how, prunable, randomize, keep_sets, compare):
    model, inputs = randomize(Called(how).double()), (torch.rand(2, 3, 4, 4, dtype=torch.float64),)
    graph = analyze(model, inputs)
    assert list(graph.prunable) == (["enter"] if prunable else [])
    assert compare(model, graph, inputs, keep_sets(graph, 0, 0.5), depth=1)[1] <= 1e-12


def test_the_weights_that_follow_are_those_of_layers_that_run():
    weights: set[int] = set()
    running = []
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 1, groups=4), nn.Conv2d(4, 2, 1))
    with following(model, weights):
        for module in model:
            module.register_forward_pre_hook(lambda *_: running.append(set(weights)))
        model(torch.rand(1, 4, 2, 2))
    assert running == [{id(model[0].weight)}, {id(model[1].weight)}, set()]
    model(torch.rand(1, 4, 2, 2))
    assert running[3:] == [set()] * 3
