"""Which groups can keep no channels, and what is said of those that can't."""

import threading

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from autoprune.errors import PolicyError
from autoprune.graph import analyze, prune
from autoprune.graph.emptiable import largest_set

X = torch.rand(1, 3, 8, 8)


class Two(nn.Module):
    """Two branches that ``join`` brings together, behind code of the model's own."""

    def __init__(self, join=torch.add, code=lambda x: x, outputs=4):
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.left_out, self.right_out = nn.Conv2d(4, 4, 1), nn.Conv2d(6, 4, 1)
        self.head, self.join, self.code = nn.Conv2d(outputs, 2, 1), join, code

    def forward(self, x):
        left, right = self.left_out(F.relu(self.left(x))), self.right_out(self.code(F.relu(self.right(x))))
        return self.head(self.join(left, right))


def cat(a, b):
    return torch.cat([a, b], 1)


@pytest.mark.parametrize(("join", "outputs"), [(torch.add, 4), (cat, 8)])
def test_either_path_can_go_but_not_both(join, outputs):
    graph = analyze(Two(join, outputs=outputs), (X,))
    assert {"left", "right"} <= set(graph.emptiable)
    assert largest_set(graph, ["right", "left"]) == ["right"]
    message = (
        r"^groups `left`, `right` can't all be emptied: together they carry all that `head` sees; keep .*$"
    )
    for refused in (lambda: prune(Two(join, outputs=outputs), graph, {"left": [], "right": []}),
                    lambda: graph.gflops({"left": 0, "right": 0})):  # fmt: skip
        with pytest.raises(PolicyError, match=message):
            refused()


def filled(out, *parts):
    """The sum of ``parts``, written into ``out``."""
    for part in parts:
        out.add_(part)
    return out


@pytest.mark.parametrize(
    "start",
    [
        torch.zeros_like,
        torch.ones_like,
        lambda x: torch.empty_like(x).zero_(),
        lambda x: x.new_zeros(x.shape),
    ],
)
def test_a_tensor_of_the_same_shape_carries_no_signal(start):
    graph = analyze(Two(lambda a, b: filled(start(a), a, b)), (X,))
    assert set(graph.emptiable) == {"left", "right"}
    assert largest_set(graph, ["right", "left"]) == ["right"]
    with pytest.raises(PolicyError, match="together they carry all that `head` sees"):
        prune(Two(), graph, {"left": [], "right": []})


def test_what_all_signal_goes_through_is_refused_with_what_it_feeds(residual):
    graph = analyze(residual(), (torch.rand(1, 3, 8, 8),))
    assert graph.emptiable == ("inner",)
    stem, head = graph.groups["stem"], graph.groups["head"]
    assert stem.empty_reason.startswith("carries all that")
    assert stem.empty_reason.endswith("`head` sees")
    assert head.empty_reason == head.reason is not None
    with pytest.raises(PolicyError, match=r"^group `stem` can't be emptied: it carries .*; keep 1 at least$"):
        prune(residual(), graph, {"stem": []})
    with pytest.raises(PolicyError, match="group `head` can't lose channels: it has no consumer"):
        graph.gflops({"head": 0})


class Heads(nn.Module):
    """Two predictions; each needs its own tower."""

    def __init__(self, channels=2):
        super().__init__()
        self.stem, self.a, self.b = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.scores, self.boxes = nn.Conv2d(4, channels, 1), nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        best = self.scores(F.relu(self.a(x))).flatten().argmax()
        return self.boxes(F.relu(self.b(x))).flatten(2)[..., best % 64]


@pytest.mark.parametrize("channels", [1, 2])
def test_every_prediction_must_see_the_input(channels):
    """Also one that only decides which results are returned, and one of a single channel."""
    graph = analyze(Heads(channels), (X,))
    assert graph.emptiable == ()
    reasons = {name: graph.groups[name].empty_reason for name in ("a", "b")}
    assert reasons == {"a": "carries all that `scores` sees", "b": "carries all that `boxes` sees"}


@pytest.mark.parametrize(
    ("code", "error"),
    [
        (lambda x: F.max_pool2d(x, 3, 1, 1), "RuntimeError"),
        (lambda x: F.interpolate(x, scale_factor=2)[..., ::2, ::2], "RuntimeError"),
        (lambda x: x * (len(x[0]) // len(x[0])), "ZeroDivisionError: "),
        (lambda x: x.view(-1, x.shape[1], 64).view(1, x.shape[1], 8, 8), "RuntimeError: cannot reshape"),
    ],
)
def test_code_that_fails_without_channels_keeps_some(code, error):
    graph = analyze(Two(code=code), (X,))
    assert graph.groups["right"].prunable
    assert graph.emptiable == ("left",)
    assert f"needed by the model's code, which fails without: {error}" in graph.groups["right"].empty_reason


def test_a_branch_that_the_input_does_not_reach_is_left_alone():
    class Constants(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.outer, self.head = nn.Linear(4, 6), nn.Linear(6, 8), nn.Linear(8, 2)
            self.stem, self.places = nn.Linear(3, 8), nn.Parameter(torch.rand(5, 4))

        def forward(self, x):
            return self.head(self.stem(x) + self.outer(F.relu(self.inner(self.places))))

    graph = analyze(Constants(), (torch.rand(5, 3),))
    assert graph.groups["inner"].prunable
    assert "does not carry the input's signal" in graph.groups["inner"].empty_reason


def test_a_model_that_cannot_be_copied_is_analyzed_all_the_same():
    model = Two()
    model.lock = threading.Lock()
    graph = analyze(model, (X,))
    assert graph.emptiable == ()
    assert "can't be tried: Two can't be copied" in graph.groups["left"].empty_reason
