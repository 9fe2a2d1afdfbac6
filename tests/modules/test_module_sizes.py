"""Attributes of torch's layers after pruning."""

import torch
from torch import nn

from autoprune.graph import analyze, prune
from autoprune.modules.module_sizes import follows, may_have_sizes

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
