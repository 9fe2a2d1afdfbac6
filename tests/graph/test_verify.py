"""Code whose sizes can't follow a pruning: what is frozen, why, and that nothing else is."""

import pytest
import torch
from torch.nn import functional as F

from autoprune.graph import analyze

from .conftest import Between


@pytest.mark.parametrize(
    ("how", "message"),
    [
        (lambda x: x.view(-1, 8, 16).view(x.shape[0], -1, 4, 4), "fixed length"),
        (lambda x: x + torch.zeros(1, 8, 1, 1), "fixed length"),
        (lambda x: torch.cat(x.split(4, 1)[::-1], 1), "length"),
        (lambda x: x * x.shape[1] ** -0.5, "sets a number"),
        (lambda x: x / torch.sqrt(torch.tensor(x.shape[1])), "sets a number"),
        (lambda x: x / torch.tensor([float(x.shape[1])]), "sets a number"),
        (lambda x: x + (x * torch.full((1, 8, 1, 1), 1.0 / x.shape[1])).sum(1, keepdim=True), "fixed length"),
        (lambda x: x + (x * torch.full_like(x, 1.0 / x.shape[1])).sum(1, keepdim=True), "sets a number"),
        (lambda x: torch.add(x, x.relu(), alpha=x.shape[1] ** -0.5), "sets a number"),
        (lambda x: torch.addcmul(x, x, x, value=1 / x.shape[1]), "sets a number"),
        (lambda x: x[:, torch.arange(7, -1, -1)], "picked from by an index"),
        (lambda x: x.softmax(1), "softmax"),
        (lambda x: x - x.mean(1, keepdim=True), "reduced by mean"),
        (lambda x: torch.cumsum(x, 1), "goes into cumsum"),
        (lambda x: F.layer_norm(x.movedim(1, -1), (8,)).movedim(-1, 1), "normalized over all channels"),
        (lambda x: x.sort(1).values, "sort"),
        (lambda x: x.flip(1), "goes into flip"),
        (lambda x: x.roll((1, 1), (2, 1)), "goes into roll"),
    ],
)
def test_code_that_cannot_follow_freezes_its_channels_and_no_others(how, message, keep_sets, compare):
    model, inputs = Between(how), (torch.rand(2, 3, 4, 4),)
    graph = analyze(model, inputs)
    assert list(graph.prunable) == ["enter"]
    assert message in graph.groups["middle"].reason
    assert compare(model, graph, inputs, keep_sets(graph, 0))[1] <= 1e-5


class Picky(Between):
    """Processes the positive values one by one, as detectors do with their boxes."""

    def forward(self, x):
        scores = super().forward(x)
        return torch.stack([value * 2 for value in scores[scores > 0]]).sum()


@pytest.mark.parametrize("seed", range(5))
def test_a_number_of_parts_that_depends_on_values_is_no_reason_to_freeze(seed):
    torch.manual_seed(seed)  # the pruned model has another number of positive values
    graph = analyze(Picky(lambda x: x * x.shape[1] ** -0.5), (torch.randn(2, 3, 4, 4),))
    assert list(graph.prunable) == ["enter"]
    assert "sets a number" in graph.groups["middle"].reason


class TwoHeads(torch.nn.Module):
    """Attention of two heads: once one is gone, `reshape` need not copy what `transpose` returned."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value = (torch.nn.Linear(6, 8) for _ in range(3))
        self.leave = torch.nn.Linear(8, 3)

    def forward(self, x):
        q, k, v = (
            layer(x).view(*x.shape[:2], -1, 4).transpose(1, 2) for layer in (self.query, self.key, self.value)
        )
        heads = (q @ k.transpose(2, 3) * 0.5).softmax(-1) @ v
        return self.leave(heads.transpose(1, 2).reshape(*x.shape[:2], -1))


def test_whether_a_reshape_copies_decides_nothing(compare):
    model, inputs = TwoHeads(), (torch.rand(2, 5, 6),)
    graph = analyze(model, inputs)
    assert {name: group.width for name, group in graph.prunable.items()} == {"query": 2}
    assert compare(model, graph, inputs, {"query": [1]})[1] <= 1e-5


class WithPositions(TwoHeads):
    """Learned positions, which norms and biases shift, but which nothing sums."""

    def __init__(self):
        super().__init__()
        self.positions, self.norm = torch.nn.Parameter(torch.rand(1, 5, 6)), torch.nn.LayerNorm(6)

    def forward(self, x):
        return super().forward(self.norm(x + torch.cat([self.positions[:, :2], self.positions[:, 2:]], 1)))


def test_a_shift_of_positions_freezes_no_heads(randomize, compare):
    model, inputs = randomize(WithPositions()).double(), (torch.rand(2, 5, 6, dtype=torch.float64),)
    graph = analyze(model, inputs)
    assert {name: group.width for name, group in graph.prunable.items()} == {"query": 2}
    assert compare(model, graph, inputs, {"query": [1]})[1] <= 1e-12


class Refuses(torch.nn.Module):
    """Code that accepts one width alone."""

    def forward(self, x):
        """The input."""
        if x.shape[1] != 8:
            raise ValueError("8 channels alone")
        return x * 8**-0.5


class Block(torch.nn.Module):
    """Layers, and code behind them."""

    def __init__(self, inputs, refuses):
        super().__init__()
        self.layer, self.code = torch.nn.Conv2d(inputs, 8, 1), Refuses() if refuses else torch.nn.Identity()

    def forward(self, x):
        """What the code makes of the layer's output."""
        return self.code(self.layer(x)) * 8**-0.5


@pytest.mark.parametrize("places", [{7}, {3, 20}])
def test_an_error_leads_to_the_block_it_is_raised_in(places):
    blocks = [Block(8 if place else 3, place in places) for place in range(32)]
    model, runs = torch.nn.Sequential(*blocks, torch.nn.Conv2d(8, 2, 1)), []
    model.register_forward_pre_hook(lambda *_: runs.append(1))
    graph = analyze(model, (torch.rand(1, 3, 4, 4),))
    assert set(graph.groups) - set(graph.prunable) == {*(f"{place}.layer" for place in places), "32"}
    assert len(runs) < 8 + 5 * len(places)  # bisection alone takes two for each halving of 32
