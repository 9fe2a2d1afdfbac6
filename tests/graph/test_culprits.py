"""The search for the groups behind a failure."""

import pytest
import torch
from torch import nn

from autoprune.graph import analyze
from autoprune.graph.culprits import failed_in, find_culprits, inside


@pytest.mark.parametrize("culprits", [set(), {3}, {0, 7}, {1, 2, 5}])
def test_bisection_finds_each_group_that_fails_alone(culprits):
    def problem_of(groups):
        return f"fails with {min(culprits & set(groups))}" if culprits & set(groups) else None

    assert find_culprits(problem_of, range(8)) == [(n, f"fails with {n}") for n in sorted(culprits)]


def test_groups_that_only_fail_together_are_all_frozen():
    def problem_of(groups):
        return "fails" if {2, 6} <= set(groups) else None

    named = find_culprits(problem_of, range(8))
    assert [group for group, _ in named] == list(range(8))
    assert {reason for _, reason in named} == {"can't shrink together with other groups in the model's code"}


def test_the_likely_ones_are_tried_first():
    tried = []

    def problem_of(groups):
        tried.append(list(groups))
        return "fails" if 5 in groups else None

    named = find_culprits(problem_of, list(range(8)), lambda groups: [n for n in groups if n == 5])
    assert named == [(5, "fails")]
    assert tried == [list(range(8)), [5], [n for n in range(8) if n != 5]]


@pytest.mark.parametrize("likely", [[], [0, 1], list(range(8))])
def test_a_wrong_guess_costs_runs_only(likely):
    def problem_of(groups):
        return "fails" if 6 in groups else None

    assert find_culprits(problem_of, list(range(8)), lambda _: likely) == [(6, "fails")]


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 6)

    def forward(self, x):
        return self.layer(x)


def test_an_error_names_the_modules_that_it_was_raised_in():
    model = nn.Sequential(nn.Linear(3, 4), nn.Sequential(Inner(), nn.ReLU()), nn.Linear(6, 2))
    graph = analyze(model, (torch.rand(1, 3),))
    with pytest.raises(RuntimeError) as error:
        model[1](torch.rand(1, 5))
    names = failed_in(model, error.value)
    assert names == ["1.0.layer", "1.0", "1"]
    groups = list(graph.groups.values())
    assert [group.name for group in inside(groups, names)] == ["0", "1.0.layer"]
    assert inside(groups, ["elsewhere"]) == []
