"""What is observed of layers, by hand; where the inputs of a channel are in a layer's weights."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.graph import ChannelGroup, analyze
from autoprune.importance import readers, score
from autoprune.importance.readers import Reader, find_readers, inputs_of, observe


def test_what_is_observed_of_a_layer(net, images):
    reader = Reader(net.second)
    observe(net, {"second": reader}, lambda: images, 0)  # more positions than there are
    patches, fisher = [], torch.zeros(2)
    for (image,), _ in images:
        x = image[None]
        for level in (x, x[..., ::2, ::2]):
            read = net.first(level).relu()
            patches.append(F.unfold(read, 3, padding=1, stride=2)[0].T)
            raw = net.second(read).detach().requires_grad_()
            (gradient,) = torch.autograd.grad(raw.relu().square().mean(), raw)
            fisher += gradient.square().sum((0, 2, 3)) / len(images)
    expected = torch.cat(patches).double()
    assert reader.samples == len(expected)
    torch.testing.assert_close(reader.total, expected.sum(0))
    torch.testing.assert_close(reader.gram, expected.T @ expected)
    torch.testing.assert_close(reader.fisher.float(), fisher)


class ByName(nn.Module):
    """A layer that the code around it calls with ``input=``."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(input=x)


def test_the_same_is_observed_of_a_layer_that_is_called_by_name(net, images):
    readers = [Reader(net.second), Reader(net.second)]
    observe(net, {"second": readers[0]}, lambda: images, 0)
    net.second = ByName(net.second)
    observe(net, {"second.layer": readers[1]}, lambda: images, 0)
    torch.testing.assert_close(readers[1].gram, readers[0].gram)
    torch.testing.assert_close(readers[1].fisher, readers[0].fisher)


@pytest.mark.parametrize("value", [0.0, 1e-3, 1e3])
def test_moments_of_inputs_that_do_not_vary_can_be_inverted(value):
    x = torch.full((64, 9), value).double()
    x[:, :3] += torch.randn(64, 3, generator=torch.Generator().manual_seed(0)).double()
    reader = Reader(nn.Linear(9, 2))
    reader.add(x.float())
    reader.flush()
    assert torch.linalg.eigvalsh(reader.moments()).min() > 0
    torch.linalg.cholesky(reader.moments())


class Behind(nn.Module):
    """A linear layer reads a flattened map: each channel at every position of it."""

    def __init__(self):
        super().__init__()
        self.first, self.flat, self.last = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4 * 6, 5), nn.Linear(5, 2)

    def forward(self, images, targets=None):
        x = self.first(torch.stack(images)).relu()
        out = self.last(self.flat(x[:, :, ::4, ::3].flatten(1)).relu())
        return out if targets is None else {"loss": out.square().mean()}


@pytest.fixture
def behind():
    torch.manual_seed(0)
    return Behind()


def test_inputs_of_a_channel_are_where_its_values_go(behind, images):
    graph = analyze(behind, (images[0][0],))
    group = graph.groups["first"]
    (channels,) = [
        index
        for (tensor, axis, index), role in zip(group.members, group.roles, strict=True)
        if role == "consumer"
    ]
    places = inputs_of(group, channels, behind.flat)
    assert places.shape == (4, 6)
    maps = torch.arange(24.0).reshape(1, 4, 2, 3)
    assert torch.equal(maps.flatten(1)[0, places.ravel()], maps[0].flatten())

    layer = nn.Conv2d(4, 2, 3)
    x = torch.arange(4.0).repeat_interleave(9)  # the channel that each of the flattened weights reads
    reading = np.array([2, -1, 0, 1])
    group = ChannelGroup("g", 3, 1, True, None, [], [], np.arange(3).reshape(-1, 1))
    places = inputs_of(group, reading, layer)
    assert [reading[int(n)] for n in x[places.ravel()]] == [0] * 9 + [1] * 9 + [2] * 9


def test_of_a_layer_with_very_many_inputs_the_positions_are_samples(behind, images, monkeypatch):
    monkeypatch.setattr(readers, "MOST_INPUTS", 20)
    graph = analyze(behind, (images[0][0],))
    reader = find_readers(behind, graph)["flat"]
    assert find_readers(behind, graph)["last"].inputs is None
    observe(behind, {"flat": reader}, lambda: images, 0)
    x = torch.cat([behind.first(image[None]).relu()[:, :, ::4, ::3] for (image,), _ in images])
    by_position = x.detach().flatten(2).movedim(1, 2).flatten(0, 1).double()  # [images · positions, channels]
    torch.testing.assert_close(reader.gram, by_position.T @ by_position)
    # the layer's output is the sum over positions of what each position's weights give
    weights = reader.weights.reshape(5, 6, 4)
    given = torch.einsum("opc,npc->no", weights, by_position.reshape(3, 6, 4))
    torch.testing.assert_close((given + behind.flat.bias).float(), behind.flat(x.flatten(1)).detach())
    assert len(reader.fisher_by_row) == 30


def test_scores_by_positions_find_the_channel_that_others_can_imitate(behind, images, monkeypatch):
    with torch.no_grad():
        for tensor in (behind.first.weight, behind.first.bias):
            tensor[2] = tensor[1]
    monkeypatch.setattr(readers, "RIDGE", 1e-6)
    graph = analyze(behind, (images[0][0],))
    monkeypatch.setattr(readers, "MOST_INPUTS", 20)
    folded = score("obs", behind, graph, lambda: images)["first"]
    assert np.argmin(folded) in (1, 2)


def test_a_layer_with_very_many_inputs_of_several_groups_is_left_out(behind, images, monkeypatch):
    monkeypatch.setattr(readers, "MOST_INPUTS", 20)
    graph = analyze(behind, (images[0][0],))
    group = graph.groups["first"]
    for (_, _, index), role in zip(group.members, group.roles, strict=True):
        if role == "consumer":
            index[:6] = -1  # as if another group's channel were read there
    assert "flat" not in find_readers(behind, graph)
