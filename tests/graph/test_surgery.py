"""Pruned copies: their sizes, weights and independence of the model, and keep sets that are refused."""

import copy
import pickle
import threading

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.nn.utils.parametrize import register_parametrization

from autoprune.errors import ModelError, PolicyError
from autoprune.graph import analyze, mask, prune

X = torch.rand(1, 3, 6, 6)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8), nn.PReLU(8), nn.Conv2d(8, 6, 1, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 10, 2), nn.BatchNorm2d(10), nn.Conv2d(10, 4, 1),
    )  # fmt: skip


@pytest.fixture
def graph():
    return analyze(network(), (X,))


def test_kept_weights_are_the_dense_ones():
    model = network()
    pruned = prune(model, analyze(model, (X,)), {"5": [2, 7]})
    assert torch.equal(pruned[5].weight, model[5].weight[:, [2, 7]])
    assert torch.equal(pruned[6].running_var, model[6].running_var[[2, 7]])
    assert torch.equal(pruned[7].weight, model[7].weight[:, [2, 7]])


def test_a_copy_shares_nothing_and_keeps_settings():
    model = network()
    model[0].weight.requires_grad_(False)
    model[5].weight.note = "kept"
    calls = []
    model[5].register_forward_hook(lambda *_: calls.append(1))
    model = model.to(memory_format=torch.channels_last).train()
    pruned = prune(model, analyze(model, (X,)), {"5": [0, 1, 2]})
    assert not pruned[0].weight.requires_grad
    assert pruned[5].weight.requires_grad
    assert pruned[5].weight.note == "kept"
    assert pruned.training
    assert pruned[5].weight.is_contiguous(memory_format=torch.channels_last)
    calls.clear()
    pruned(X)
    assert calls == [1]
    pointers = {t.data_ptr() for t in model.state_dict().values()}
    assert not any(t.data_ptr() in pointers for t in pruned.state_dict().values())


def test_shared_parameters_stay_shared():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2))
    model[3].weight = model[1].weight
    graph = analyze(model, (torch.rand(1, 4),))
    pruned = prune(model, graph, {"0": [0, 3]})
    assert pruned[1].weight is pruned[3].weight
    assert pruned[1].weight.shape == (2, 2)


def test_a_state_dict_goes_round():
    model = network()
    graph = analyze(model, (X,))
    keep = {"0": graph.groups["0"].units[:1].ravel().tolist(), "5": [4]}
    pruned, again = prune(model, graph, keep), prune(network(), graph, keep)
    again.load_state_dict(pruned.state_dict())
    assert torch.equal(again.eval()(X), pruned.eval()(X))


def test_keeping_all_changes_nothing():
    model = network().eval()
    graph = analyze(model, (X,))
    whole = {name: range(group.width) for name, group in graph.groups.items()}
    for copied in (prune(model, graph, {}), prune(model, graph, whole), mask(model, graph, whole)):
        assert torch.equal(copied(X), model(X))


class Keeping(nn.Module):
    """Keeps its activations, which hold gradients, in several places."""

    def __init__(self):
        super().__init__()
        self.enter, self.leave, self.last, self.all = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1), None, []

    def forward(self, x):
        self.last = self.enter(x)
        self.all = [{"last": self.last * 2}]
        return self.leave(self.last)


def test_a_model_that_keeps_activations_is_copied():
    model = Keeping()
    graph = analyze(model, (X,))
    model(X)
    assert model.last.grad_fn is not None
    keep = {"enter": [1, 5]}
    torch.testing.assert_close(prune(model, graph, keep)(X), mask(model, graph, keep)(X))


def test_a_model_that_cannot_be_copied_is_refused():
    model = network()
    graph = analyze(model, (X,))
    model.lock = threading.Lock()
    with pytest.raises(ModelError, match=r"Sequential can't be copied: TypeError: .*lock.*must work$"):
        prune(model, graph, {"5": [1]})


@pytest.mark.parametrize("normalize", [spectral_norm, weight_norm, nn.utils.spectral_norm])
def test_parametrized_weights_are_left_as_they_were(normalize):
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.ReLU(),
        normalize(nn.Conv2d(8, 8, 1)),
        nn.ReLU(),
        nn.Conv2d(8, 6, 1),
        nn.Conv2d(6, 2, 1),
    ).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = analyze(model, (X,))
    assert "4" in graph.prunable
    keep = {name: range(1, group.width) for name, group in graph.prunable.items()}
    pruned, masked = prune(model, graph, keep), mask(model, graph, keep)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    torch.testing.assert_close(pruned.eval()(X), masked.eval()(X))


def test_an_elementwise_parametrization_is_pruned():
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 6, 1), nn.Conv2d(6, 2, 1))
    register_parametrization(model[1], "weight", nn.Tanh())
    graph = analyze(model, (X,))
    pruned = prune(model, graph, keep := {"0": [0, 3], "1.parametrizations.weight.original": [1, 2, 5]})
    assert (pruned[1].in_channels, pruned[1].out_channels, pruned[2].in_channels) == (2, 3, 3)
    torch.testing.assert_close(pruned(X), mask(model, graph, keep)(X))


def test_a_pruned_model_is_copied_and_pickled_as_any(graph):
    pruned = prune(network(), graph, {"5": [1, 2]}).eval()
    for again in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert torch.equal(again(X), pruned(X))


@pytest.mark.parametrize(
    "wrong",
    [np.arange(10) % 2 == 0, [True] * 10, torch.tensor([True, False]), [0.5, 2.0], "01", [[0, 1]], 3, None,
     [[0], [1, 2]], torch.empty(2, dtype=torch.long, device="meta"), torch.arange(2).to_sparse()],
)  # fmt: skip
def test_a_keep_set_is_numbers_of_channels(graph, wrong):
    with pytest.raises(PolicyError, match=r"^group `5`: keep takes the numbers of channels, .*$"):
        prune(network(), graph, {"5": wrong})


def test_keep_sets_come_in_any_collection(graph):
    expected = prune(network(), graph, {"5": [1, 4]})
    for keep in (
        {4, 1},
        (i for i in (1, 4)),
        np.array([4, 1], dtype=np.uint8),
        torch.tensor([1, 4]),
        range(1, 5, 3),
    ):
        assert prune(network(), graph, {"5": keep})[5].weight.shape == expected[5].weight.shape


def test_what_is_no_dict_of_groups_is_refused(graph):
    with pytest.raises(PolicyError, match=r"^keep is a list; give a dict of channels kept by group name$"):
        prune(network(), graph, [1, 2])
    for none in ([3], []):
        with pytest.raises(PolicyError, match=r"^widths is a list; give a dict"):
            graph.gflops(none)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ({"5": []}, "group `5` can't be emptied: it carries all that `7` sees; keep 1 at least"),
        ({"5": [0, 10]}, "group `5` has no channel 10"),
        ({"5": [-1, 1]}, "group `5` has no channel -1"),
        ({"5": [2**63]}, "group `5` has no channel 9223372036854775808"),
        ({"5": [1, 1]}, "group `5` would keep channel 1 twice"),
        ({"nothing": [1]}, "no channel group is named `nothing`"),
        ({"7": [0]}, "group `7` can't lose channels: it has no consumer"),
    ],
)
def test_keep_sets_that_do_not_fit_are_refused(graph, keep, message):
    with pytest.raises(PolicyError, match=message):
        prune(network(), graph, keep)


def test_half_a_unit_is_refused(graph):
    unit = graph.groups["0"].units[0]
    with pytest.raises(PolicyError, match="group `0` loses units of 7"):
        prune(network(), graph, {"0": [int(unit[0])]})


def test_a_graph_of_another_model_is_refused(graph):
    with pytest.raises(PolicyError, match="of another model"):
        prune(nn.Sequential(nn.Conv2d(3, 8, 3)), graph, {"5": [1]})
    other = network()
    other[0] = nn.Conv2d(3, 8, 1)
    with pytest.raises(PolicyError, match=r"`0.weight` is \[8, 3, 1, 1\] here, not \[8, 3, 3, 3\]"):
        prune(other, graph, {"5": [1]})
