"""What remains of an emptied branch is fitted to the mean of the dense outputs, and nearer to them."""

import copy

import pytest
import torch
from torch import nn

from autoprune.graph import analyze, prune
from autoprune.graph.emptied import Constant
from autoprune.graph.surgery import kept_rows
from autoprune.training.reconstruct_constants import fit_constants, readers_of_constants

from .conftest import reconstruct


class Branches(nn.Module):
    """A residual branch with norms, and one of linear layers; called for two levels."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 2, 1)
        self.inner, self.norm = nn.Conv2d(8, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.outer, self.last = nn.Conv2d(6, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.up, self.down = nn.Linear(8, 12), nn.Linear(12, 8)

    def level(self, x):
        x = x + self.last(self.outer(self.norm(self.inner(x)).relu()))
        lines = x.movedim(1, -1)
        return self.head((lines + self.down(self.up(lines).relu())).movedim(-1, 1))

    def forward(self, images):
        x = self.stem(torch.stack(images)).relu()
        return self.level(x), self.level(x[..., ::2, ::2])


@pytest.fixture
def dense():
    torch.manual_seed(0)
    model = Branches()
    for norm in (model.norm, model.last):
        nn.init.uniform_(norm.weight, 0.5, 1.5)
        nn.init.uniform_(norm.bias, -1, 1)
        norm.running_mean.uniform_(-0.5, 0.5)
    return model.eval()


def test_constants_are_means_over_all_calls_of_the_kept_channels(dense):
    images = [torch.rand(3, 8, 8) for _ in range(3)]
    graph = analyze(dense, (images,))
    keep = {"inner": [], "up": [], "stem": [0, 2, 3, 7]}
    pruned = prune(dense, graph, keep)
    assert pruned.outer.stands_for == "last"
    fit_constants(pruned, dense, kept_rows(graph, keep), lambda: dense(images))
    constants = {name for name, module in pruned.named_modules() if isinstance(module, Constant)}
    assert constants == {"outer", "down"}
    with torch.no_grad():
        rows = {"last": [], "down": []}
        x = dense.stem(torch.stack(images)).relu()
        for level in (x, x[..., ::2, ::2]):
            branch = dense.last(dense.outer(dense.norm(dense.inner(level)).relu()))
            rows["last"].append(branch.movedim(1, -1).flatten(0, 2))
            rows["down"].append(dense.down(dense.up((level + branch).movedim(1, -1)).relu()).flatten(0, 2))
    for layer, name in ((pruned.outer, "last"), (pruned.down, "down")):
        torch.testing.assert_close(layer.bias.detach(), torch.cat(rows[name]).mean(0)[[0, 2, 3, 7]])


@pytest.mark.parametrize("name", ["inner", "up"])
def test_the_outputs_are_nearer_to_the_dense_ones(dense, name, split):
    """Nearer with the constant than as masked, and more so with the layers behind the branch solved."""
    images = list(split.images)
    graph, keep = analyze(dense, (images[:1],)), {name: []}
    pruned = prune(dense, graph, keep)
    before = [parameter.clone() for parameter in pruned.parameters()]
    constant = copy.deepcopy(pruned)
    fit_constants(constant, dense, kept_rows(graph, keep), lambda: dense(images))
    reconstruction = reconstruct(pruned, dense, graph, keep, split, 10, "cpu", seed=0)
    assert all(map(torch.equal, before, pruned.parameters()))
    assert "head" in reconstruction.errors
    with torch.no_grad():
        masked, fitted, solved = (
            sum((a - b).square().mean() for a, b in zip(each(images), dense(images), strict=True))
            for each in (pruned, constant, reconstruction.model)
        )
    assert fitted < 0.5 * masked
    assert solved < fitted


def test_what_reads_a_stream_that_lost_a_branch_is_solved(dense):
    graph = analyze(dense, ([torch.rand(3, 8, 8)],))
    assert set(readers_of_constants(prune(dense, graph, {"inner": []}), graph)) == {"up", "head"}
    assert readers_of_constants(prune(dense, graph, {"inner": [0]}), graph) == {}


def test_without_constants_the_dense_detector_is_not_run(dense):
    fit_constants(dense, dense, {}, lambda: pytest.fail("ran"))
