import numpy as np
import pytest
import torch
from torch import nn

from autoprune.config import make_config
from autoprune.graph import analyze, mask, prune
from autoprune.recovery import regrow as module
from autoprune.recovery.regrow import exchange, regrow, scatter_into_dense
from autoprune.space.file import GroupRule, SpaceFile
from autoprune.space.resolve import resolve
from autoprune.task.pruning_task import load_task


def space_on(graph, round_to=8, max_ratio=0.75):
    rules = (GroupRule(match="*", max_ratio=max_ratio),)
    file = SpaceFile(
        model="m", input_size=(8, 8), criterion="l2", groups=rules, round_to=round_to, min_width=8
    )
    return resolve(file, graph)


@pytest.fixture
def chained(chain):
    """A chain of groups, half of each kept, and values of all units."""
    graph = chain(units=[1, 1, 4, 1])
    random = np.random.default_rng(0)
    values = {name: random.exponential(1.0, len(group.units)) for name, group in graph.prunable.items()}
    keep = {name: tuple(range(group.width // 2)) for name, group in graph.prunable.items()}
    return graph, keep, values


def widths_of(space, keep):
    return np.array([len(keep.get(name, range(space.graph.groups[name].width))) for name in space.names])


def total(graph, keep, values):
    return sum(
        values[name][np.isin(group.units[:, 0], keep.get(name, range(group.width)))].sum()
        for name, group in graph.prunable.items()
    )


def test_with_the_same_widths_the_best_units_of_each_group_are_left(chained, monkeypatch):
    monkeypatch.setattr(module, "EXCHANGED", 1.0)
    graph, keep, values = chained
    exchanged = exchange(space_on(graph), keep, values, same_widths=True)
    for name, group in graph.prunable.items():
        count = len(keep[name]) // group.unit
        best = group.units[np.argsort(-values[name])[:count]]
        assert exchanged[name] == tuple(sorted(best.ravel().tolist()))


def by_plain_loops(space, keep, values, fraction):
    """The rule of `exchange`, written out: all moves of each turn in a list, the best of them done."""
    groups = space.graph.groups
    first = {n: set(np.flatnonzero(np.isin(groups[n].units[:, 0], keep[n]))) for n in space.names}
    kept, opened = {n: sorted(s, key=lambda u: values[n][u]) for n, s in first.items()}, {n: [] for n in keep}
    shut = {n: sorted({*range(len(values[n]))} - first[n], key=lambda u: -values[n][u]) for n in space.names}

    def widths():
        return np.array([(len(kept[n]) + len(opened[n])) * groups[n].unit for n in space.names])

    limit = space.cost("gflops", widths())
    left = round(fraction * sum(map(len, kept.values())))
    while True:
        moves = []
        for b, target in enumerate(space.names):
            for a, source in [(None, None), *enumerate(space.names)]:
                out, into = 8 // groups[source].unit if source else 0, 8 // groups[target].unit
                if source == target:
                    out = into = 1
                if out >= len(kept.get(source, range(99))) or into > len(shut[target]):
                    continue
                if left <= 0 and source:
                    continue
                after = widths()
                after[b] += into * groups[target].unit
                if source:
                    after[a] -= out * groups[source].unit
                if space.cost("gflops", after) > limit or (source and after[a] < space.lowest[a]):
                    continue
                lost = sum(values[source][u] for u in kept[source][:out]) if source else 0
                gain = (sum(values[target][u] for u in shut[target][:into]) - lost) / (out + into)
                moves.append((gain, source, target, out, into))
        gain, source, target, out, into = max(moves, default=(0, 0, 0, 0, 0), key=lambda move: move[0])
        if gain <= 0:
            return {
                n: tuple(sorted(groups[n].units[kept[n] + opened[n]].ravel().tolist())) for n in space.names
            }
        if source:
            del kept[source][:out]
        opened[target] += shut[target][:into]
        del shut[target][:into]
        left -= into


@pytest.mark.parametrize("seed", range(5))
def test_exchanges_are_those_of_plain_loops_and_hold_the_budget(chained, seed, monkeypatch):
    monkeypatch.setattr(module, "EXCHANGED", 0.3)
    graph, keep, _ = chained
    random = np.random.default_rng(seed)
    values = {
        name: random.exponential(random.uniform(0.1, 3), len(group.units))
        for name, group in graph.prunable.items()
    }
    space = space_on(graph)
    exchanged = exchange(space, keep, values)
    assert exchanged == by_plain_loops(space, keep, values, 0.3)
    before, after = (space.cost("gflops", widths_of(space, kept)) for kept in (keep, exchanged))
    widths = widths_of(space, exchanged)
    assert after <= before
    assert all(
        space.cost("gflops", raised) > before
        for raised in widths + np.diag(space.raised(widths) - widths)
        if (raised != widths).any()
    )
    assert (widths >= space.lowest).all()
    assert ((widths % space.step == 0) | (widths == space.dense)).all()
    assert (widths != widths_of(space, keep)).any()
    assert total(graph, exchanged, values) > total(graph, keep, values)


def test_where_what_is_kept_is_worth_more_nothing_moves(chained):
    graph, keep, _ = chained
    values = {
        name: np.isin(group.units[:, 0], keep[name]) + 1e-5 * np.arange(len(group.units))
        for name, group in graph.prunable.items()
    }
    assert exchange(space_on(graph), keep, values) == keep


@pytest.fixture(scope="module")
def task(demo_settings):
    return load_task(
        make_config(
            **{**demo_settings, "importance_images": 8, "reconstruct_images": 0, "recalibration_images": 8}
        )
    )


def test_what_was_cut_out_goes_back_to_its_place(task):
    keep = {name: tuple(range(0, group.width, 2)) for name, group in list(task.graph.prunable.items())[:7]}
    pruned = prune(task.model, task.graph, keep)
    with torch.no_grad():
        for tensor in [*pruned.parameters(), *pruned.buffers()]:
            tensor.add_(1)
    whole = scatter_into_dense(pruned, task.model, task.graph, keep)
    again, dense = prune(whole, task.graph, keep).state_dict(), task.model.state_dict()
    assert all(torch.equal(value, again[name]) for name, value in pruned.state_dict().items())
    for name, value in whole.state_dict().items():
        change = value.double() - dense[name].double()
        assert int(change.round().sum()) == pruned.state_dict()[name].numel(), name  # the rest is as it was


def test_regrowth_brings_back_what_matters(task):
    """Of a policy that keeps the wrong half of three groups; on images that it did not see."""
    space = space_on(task.graph)
    names = ["backbone.body.layer2.0.conv1", "backbone.body.layer3.1.conv1", "backbone.body.layer1.0.conv1"]
    keep = {}
    for name in names:
        weight = task.model.get_parameter(f"{name}.weight").detach().flatten(1).norm(dim=1)
        keep[name] = tuple(sorted(weight.argsort()[: len(weight) // 2].tolist()))

    def loss(kept):
        model = prune(task.model, task.graph, kept).train()
        for part in model.modules():
            if isinstance(part, torch.nn.BatchNorm2d):
                part.eval()
        with torch.no_grad():
            return sum(model(*task.val.batch(range(6))).values()).item()

    regrown = regrow(task, space, keep, rounds=2)
    assert regrown == regrow(task, space, keep, rounds=2)
    costs = [task.costs(kept)["gflops"] for kept in (keep, regrown)]
    assert 0.98 * costs[0] <= costs[1] <= costs[0]
    assert loss(regrown) < 0.9 * loss(keep)


class Residual(nn.Module):
    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 16, 1), nn.Conv2d(16, 2, 1)
        self.inner, self.norm = nn.Conv2d(16, 16, 3, padding=1), norm(16)
        self.outer, self.last = nn.Conv2d(16, 16, 1), norm(16)

    def forward(self, x):
        x = self.stem(x)
        return self.head(x + self.last(self.outer(self.norm(self.inner(x)).relu())))


def test_a_constant_is_scattered_into_the_norm_that_it_stands_for():
    dense, x = Residual().eval(), torch.rand(2, 3, 8, 8)
    torch.nn.init.uniform_(dense.last.running_mean)
    graph = analyze(dense, (x,))
    keep = {"inner": (), "stem": (0, 3, 5)}
    pruned = prune(dense, graph, keep)
    with torch.no_grad():
        pruned.outer.bias += torch.rand(3)  # as a recovery changes it
        scattered = mask(scatter_into_dense(pruned, dense, graph, keep), graph, keep)
        torch.testing.assert_close(scattered(x), pruned(x))


def test_an_emptied_group_is_neither_opened_nor_made(monkeypatch):
    monkeypatch.setattr(module, "EXCHANGED", 1.0)
    graph = analyze(Residual(), (torch.rand(1, 3, 8, 8),))
    rules = (GroupRule(match="stem", max_ratio=0.5), GroupRule(match="inner", max_ratio=1.0))
    file = SpaceFile(model="m", input_size=(8, 8), criterion="l2", groups=rules, round_to=8, min_width=8)
    space = resolve(file, graph)
    values = {"stem": np.ones(16), "inner": np.full(16, 100.0)}
    assert exchange(space, {"stem": range(16), "inner": ()}, values) == {"inner": ()}
    values["inner"] = np.full(16, 1e-9)
    assert len(exchange(space, {"stem": range(8), "inner": range(8)}, values)["inner"]) == 8


class Attention(nn.Module):
    """An attention whose scale follows its width."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Linear(6, 12), nn.Linear(12, 3)
        self.query, self.key, self.value, self.out = (nn.Linear(12, 12) for _ in range(4))
        self.heads, self.width = 2, 6

    def forward(self, x):
        x = self.stem(x)
        q, k, v = (
            layer(x).view(*x.shape[:2], self.heads, self.width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        return self.head(x + self.out(y.reshape(*x.shape[:2], self.heads * self.width)))


def test_queries_that_make_up_for_their_width_are_scaled_back():
    torch.manual_seed(0)
    dense, x = Attention().double(), torch.rand(2, 5, 6, dtype=torch.float64)
    graph = analyze(dense, (x,))
    units = graph.groups["query"].units
    keep = {"query": units[[0, 3]].ravel().tolist()}
    pruned = prune(dense, graph, keep)
    assert not torch.equal(pruned.query.weight, dense.query.weight[: len(pruned.query.weight)])
    for name, value in scatter_into_dense(pruned, dense, graph, keep).state_dict().items():
        torch.testing.assert_close(value, dense.state_dict()[name], rtol=1e-12, atol=0)
    with torch.no_grad():
        for parameter in pruned.parameters():
            parameter += 0.1 * torch.rand_like(parameter)
    scattered = mask(scatter_into_dense(pruned, dense, graph, keep), graph, keep)
    torch.testing.assert_close(scattered(x), pruned(x), rtol=1e-12, atol=1e-12)
