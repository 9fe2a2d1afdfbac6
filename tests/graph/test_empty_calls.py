"""Calls that refuse tensors without channels: which groups they got, and that the run goes on."""

from dataclasses import replace

import torch
from torch import nn
from torch.nn import functional as F

from autoprune.graph import analyze
from autoprune.graph.empty_calls import EmptyCalls
from autoprune.graph.workbench import Workbench

X = torch.rand(1, 3, 8, 8)


class Branches(nn.Module):
    """Branches beside a shortcut, one for each piece of code, which stands in it."""

    def __init__(self, *code):
        super().__init__()
        self.stem, self.head, self.code = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1), code
        self.enter = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in code)
        self.norms = nn.ModuleList(nn.BatchNorm2d(4) for _ in code)
        self.leave = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in code)

    def forward(self, x):
        x = self.stem(x)
        for enter, norm, code, leave in zip(self.enter, self.norms, self.code, self.leave, strict=True):
            x = x + leave(code(F.relu(norm(enter(x)))))
        return self.head(x)


def emptied(model, names):
    """What a run without these groups returns, and the calls that failed."""
    graph = analyze(model, (X,))
    groups = {name: replace(group, can_empty=name in names) for name, group in graph.groups.items()}
    graph = replace(graph, groups=groups)  # as before anything was tried
    with Workbench(model.eval()).pruned(graph, {name: [] for name in names}) as pruned, torch.no_grad():
        calls = EmptyCalls(pruned, lambda tensor: [n for n in names if tensor == f"{n}.weight"])
        try:
            with calls:
                out = pruned(X)
        except RuntimeError as error:
            out = error
    return out, calls.failures


def test_one_run_finds_all_calls_and_their_groups():
    model = Branches(lambda x: F.max_pool2d(x, 3, 1, 1), torch.relu, lambda x: F.interpolate(x, (8, 8)))
    out, failures = emptied(model, [f"enter.{n}" for n in range(3)])
    assert [groups for groups, _ in failures] == [{"enter.0"}, {"enter.2"}]
    assert all(isinstance(error, RuntimeError) for _, error in failures)
    assert out.shape == model(X).shape
    assert analyze(model, (X,)).emptiable == ("enter.1",)


def test_what_can_not_be_mended_is_raised():
    out, failures = emptied(Branches(lambda x: x.view(1, -1, x.shape[1], 8, 8)[0]), ["enter.0"])
    assert isinstance(out, RuntimeError)
    assert [groups for groups, _ in failures] == [{"enter.0"}]


def test_a_tensor_of_several_groups_names_them_all():
    class Joined(Branches):
        def forward(self, x):
            x = self.stem(x)
            both = [F.relu(enter(x)) for enter in self.enter]
            joined = F.max_pool2d(torch.cat(both, 1), 3, 1, 1)
            return self.head(x) + joined.sum(1, keepdim=True)

    _, failures = emptied(Joined(None, None), ["enter.0", "enter.1"])
    assert [groups for groups, _ in failures] == [{"enter.0", "enter.1"}]
