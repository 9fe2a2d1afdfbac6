"""Backward elimination against numpy's least squares for every set; what is observed, by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from autoprune.graph import ChannelGroup, analyze
from autoprune.importance import readers, score
from autoprune.importance.gradients import joint, score_by_gates
from autoprune.importance.obs import eliminate
from autoprune.importance.readers import Reader


def make_group(width, unit):
    units = np.random.default_rng(1).permutation(width).reshape(-1, unit)
    return ChannelGroup("g", width, unit, True, None, [], [], units)


def make_reader(layer, x, fisher):
    """A reader that has seen samples x [S, D]."""
    reader = Reader(layer)
    reader.gram, reader.total, reader.samples = x.T @ x, x.sum(0), len(x)
    reader.fisher = fisher
    return reader


def least_error(layer, x, fisher, inputs):
    """The error with these inputs alone, weights and bias by least squares; the ridge as rows."""
    w = layer.weight.detach().double().flatten(1).numpy()
    x = x.numpy()
    if layer.bias is not None:
        x = x - x.mean(0)
    scale = np.sqrt(readers.RIDGE * (x**2).mean(0) + 1e-8 * (x**2).mean() + 1e-30)
    samples = np.sqrt(len(x))
    # ‖(W - W') x‖² / S + Σ scale² ‖W - W'‖², where W' is 0 but for ``inputs``
    rows = np.concatenate([x / samples, np.diag(scale)])
    target = rows @ w.T
    solved = np.linalg.lstsq(rows[:, inputs], target, rcond=None)[0]
    errors = ((target - rows[:, inputs] @ solved) ** 2).sum(0)
    return float(errors @ fisher.numpy()) / 2


@pytest.mark.parametrize("unit", [1, 2])
def test_the_order_and_the_errors_are_those_of_least_squares_solved_anew(unit):
    torch.manual_seed(0)
    group = make_group(8, unit)
    layers = (nn.Conv2d(8, 3, 3), nn.Conv2d(8, 2, 1, bias=False))
    data, used = [], []
    for layer, order in zip(layers, (np.arange(8), np.arange(8)[::-1]), strict=True):
        area = layer.weight[0, 0].numel()
        x = torch.randn(200, 8 * area).double() @ torch.randn(8 * area, 8 * area).double() + 0.5
        fisher = torch.rand(len(layer.weight)).double()
        data.append((layer, x, fisher, order, area))
        used.append((make_reader(layer, x, fisher), order))

    def error(units):
        channels = {int(c) for unit_ in units for c in group.units[unit_]}
        total = 0.0
        for layer, x, fisher, order, area in data:
            inputs = [p * area + k for p in range(8) if int(order[p]) in channels for k in range(area)]
            total += least_error(layer, x, fisher, inputs)
        return total

    order, errors = eliminate(group, used)
    assert sorted(order) == list(range(len(group.units)))
    alive, before = list(range(len(group.units))), 0.0
    for removed, added in zip(order, errors, strict=True):
        after = {unit_: error([u for u in alive if u != unit_]) for unit_ in alive}
        assert removed == min(after, key=after.__getitem__)
        assert added == pytest.approx(after[removed] - before, rel=1e-5, abs=1e-9)
        alive.remove(removed)
        before = after[removed]


def test_a_channel_that_others_can_imitate_goes_before_one_that_matters_less_to_the_loss(
    net, images, monkeypatch
):
    monkeypatch.setattr(readers, "RIDGE", 1e-6)
    with torch.no_grad():
        for tensor in (net.first.weight, net.first.bias):
            tensor.copy_(tensor.abs())
            tensor[1] = tensor[0]  # both give the same
        net.second.weight.copy_(net.second.weight.abs())
        net.second.weight[:, 3] *= 0.5
    graph = analyze(net, ([images[0][0][0]],))
    ours, alone = (score(name, net, graph, lambda: images)["first"] for name in ("obs", "taylor"))
    assert np.argmin(ours) in (0, 1), ours
    assert np.argmin(alone) == 3, alone


class Reading(nn.Module):
    """Attention reads the group by the weight of its own, which is no layer's."""

    def __init__(self):
        super().__init__()
        self.first, self.attention = nn.Linear(4, 8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.inner, self.outer = nn.Linear(8, 16), nn.Linear(16, 2)

    def forward(self, images, targets=None):
        x = self.first(torch.stack(images).flatten(2))
        x = self.attention(x, x, x)[0]
        out = self.outer(self.inner(x).relu())
        return out if targets is None else {"loss": out.square().mean()}


def test_a_group_that_no_layer_reads_by_itself_is_scored_by_joint():
    torch.manual_seed(0)
    net, image = Reading(), torch.rand(3, 2, 2)
    batches = [([image], [{"boxes": torch.zeros(0, 4)}])]
    graph = analyze(net, ([image],))
    scores = score("obs", net, graph, lambda: batches)
    by_gates = score_by_gates({"joint": joint}, net, graph, lambda: batches, 0)["joint"]
    assert set(scores) == set(graph.prunable)
    read = [name for name in graph.prunable if name != "first"]
    factor = np.median([scores[name].sum() / by_gates[name].sum() for name in read])
    np.testing.assert_allclose(scores["first"], factor * by_gates["first"])
