"""Spaces that may empty groups: what goes with what, budgets, and costs against torch's count."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.config import ModelSpec
from autoprune.cost.budget import Budget
from autoprune.errors import ConfigError
from autoprune.graph import analyze, prune
from autoprune.modules.attention import flop_counter
from autoprune.space.derive import derive_space
from autoprune.space.file import GroupRule
from autoprune.space.one_shot import warm_starts
from autoprune.space.render import render_space
from autoprune.space.resolve import resolve
from autoprune.space.width_options import make_width_options

X = torch.rand(1, 3, 8, 8)


class Blocks(nn.Module):
    """Two bottlenecks around a stream, and two paths of which one must stay."""

    def __init__(self):
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 32, 3, padding=1), nn.Conv2d(32, 4, 1)
        self.a, self.b = (
            nn.Sequential(nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(),
                          nn.Conv2d(24, 32, 1)) for _ in range(2)
        )  # fmt: skip
        self.left, self.right = (
            nn.Sequential(nn.Conv2d(32, 16, 1), nn.ReLU(), nn.Conv2d(16, 32, 1)) for _ in range(2)
        )

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = x + self.a(x)
        x = x + self.b(x)
        return self.head(F.relu(self.left(x) + self.right(x)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Blocks()


@pytest.fixture(scope="module")
def graph(model):
    return analyze(model, (X,))


@pytest.fixture(scope="module")
def importance(graph):
    random = np.random.default_rng(0)
    return {name: random.exponential(1, group.width) for name, group in graph.prunable.items()}


@pytest.fixture(scope="module")
def file(graph, importance):
    return derive_space(graph, importance, ModelSpec(name="m", num_classes=2), (8, 8), "l2", empty=True)


@pytest.fixture(scope="module")
def space(file, graph, importance):
    return resolve(file, graph, importance)


EMPTIED = {"a.0", "a.2", "b.0", "b.2", "left.0"}  # of the two paths the first


def test_a_derived_space_empties_all_that_can_go_together(file, graph, importance):
    plain = derive_space(graph, importance, ModelSpec(name="m", num_classes=2), (8, 8), "l2")
    ratios, before = ({rule.match: rule.max_ratio for rule in each.groups} for each in (file, plain))
    assert {name for name, ratio in ratios.items() if ratio == 1} == EMPTIED
    assert {n: r for n, r in ratios.items() if n not in EMPTIED} == {
        n: r for n, r in before.items() if n not in EMPTIED
    }
    assert max(before.values()) < 1
    text = render_space(file, graph, importance)
    assert "keeps none, or at least 8, without" in next(line for line in text.splitlines() if '"a.0"' in line)


def test_none_is_one_more_level_below_the_least_width(space, importance):
    place = space.names.index("a.2")
    assert (space.lowest[place], space.least[place]) == (0, 8)
    option = next(o for o in make_width_options(space, importance) if o.places.tolist() == [place])
    assert option.widths.ravel().tolist() == [24, 16, 8, 0]
    assert option.removed[-1] == pytest.approx(importance["a.2"].sum())
    widths = [space.widths(np.where(np.arange(len(space.variables)) == place, f, 0))[place]
              for f in (0, 1 / 3, 2 / 3, 0.83, 0.84, 1)]  # fmt: skip
    assert widths == [24, 16, 8, 8, 0, 0]
    assert all(np.array_equal(space.widths(space.fractions(w)), w) for w in (space.dense, space.lowest))


def test_what_serves_nothing_goes_too(space):
    for name, other in (("a.0", "a.2"), ("a.2", "a.0")):
        widths = space.closed(space.as_array({**space.as_dict(space.dense), name: 0}))
        changed = {n for n, w in space.as_dict(widths).items() if w == 0}
        assert changed == {name, other}
    assert space.closed(space.dense) is space.dense
    several = np.stack([space.dense, space.lowest])
    assert np.array_equal(space.closed(several)[1], space.closed(space.lowest))


@pytest.mark.parametrize("fraction", [0.7, 0.4, 0.2, 0.1])
def test_projected_policies_meet_budgets_that_torch_counts(space, model, graph, fraction, importance):
    budget = [Budget("gflops", fraction * float(space.cost("gflops", space.dense)))]
    random = np.random.default_rng(1)
    fractions = [random.random(len(space.variables)) for _ in range(5)]
    policies = [space.project_to_budget(f, budget) for f in fractions]
    starts = warm_starts(space, {"joint": importance, "l2": importance}, budget)
    policies += [space.as_array(start.widths) for start in starts]
    for widths in policies:
        assert np.array_equal(space.closed(widths), widths)
        with torch.no_grad(), flop_counter() as counter:
            prune(model, graph, space.keep(widths)).eval()(X)
        cost = float(space.cost("gflops", widths))
        assert counter.get_total_flops() // 2 == round(cost * 1e9)
        assert cost <= budget[0].limit
    if fraction < 0.2:
        assert any((widths == 0).any() for widths in policies)


def test_the_smallest_policy_can_be_made(space, model, graph):
    assert {n for n, w in space.as_dict(space.lowest).items() if w == 0} == EMPTIED
    pruned = prune(model, graph, space.keep(space.lowest))
    counts = sum(parameter.numel() for parameter in pruned.parameters())
    assert counts == round(float(space.cost("mparams", space.lowest)) * 1e6)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ([("*", 0.5), ("stem", 1.0)], "space: group `stem` can't be emptied: it carries all that"),
        (
            [("left.0", 1.0), ("right.0", 1.0)],
            "space: groups `left.0`, `right.0` can't all be emptied: together",
        ),
    ],
)
def test_a_space_that_empties_what_must_stay_is_refused_by_name(file, graph, rules, message):
    groups = tuple(GroupRule(match=match, max_ratio=ratio) for match, ratio in rules)
    with pytest.raises(ConfigError, match=rf"^{message}.*, with a max_ratio below 1$"):
        resolve(file.model_copy(update={"groups": groups}), graph)


def test_steps_leave_emptied_groups_empty(space):
    assert np.array_equal(space.raised(space.lowest) == 0, space.lowest == 0)
    assert np.array_equal(space.lowered(space.least), space.least)
    assert replace(space, latency=lambda w: w.sum(-1)).cost("latency_ms", space.lowest) == space.lowest.sum()
