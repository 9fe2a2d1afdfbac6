"""From what the rules stated to groups, against brute force."""

import torch
from torch import nn

from autoprune.graph import analyze

from .conftest import Parts


def test_groups_are_named_after_their_first_producer_in_the_order_of_execution(parts):
    # b runs first, although a is first among the modules.
    assert {name: (g.width, g.prunable) for name, g in parts.groups.items()} == {
        "b": (6, True), "a": (4, True), "leave": (2, False),
    }  # fmt: skip
    assert list(parts.groups) == ["b", "a", "leave"]


def test_an_axis_of_two_groups_names_the_channels_of_each(parts):
    members = {
        name: next(m.channels for m in group.members if (m.tensor, m.axis) == ("leave.weight", 1))
        for name, group in parts.prunable.items()
    }
    assert members["a"].tolist() == [0, 1, 2, 3, *[-1] * 6]
    assert members["b"].tolist() == [-1] * 4 + [0, 1, 2, 3, 4, 5]


def test_roles_are_what_tensors_do_with_the_channels(parts):
    group = parts.groups["b"]
    roles = {(m.tensor, m.axis): role for m, role in zip(group.members, group.roles, strict=True)}
    assert roles == {
        ("b.weight", 0): "producer", ("b.bias", 0): "other", ("c.weight", 0): "producer",
        ("c.bias", 0): "other", ("c.weight", 1): "consumer", ("leave.weight", 1): "consumer",
    }  # fmt: skip


def test_shapes_are_those_of_all_parameters_and_buffers(parts):
    model = Parts()
    assert parts.shapes == {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_a_second_group_of_one_producer_gets_a_number():
    class Halves(nn.Module):
        def __init__(self):
            super().__init__()
            self.enter, self.first, self.second = nn.Conv2d(3, 8, 1), nn.Conv2d(5, 2, 1), nn.Conv2d(3, 2, 3)

        def forward(self, x):
            a, b = self.enter(x).split([5, 3], 1)
            return self.first(a), self.second(b)

    graph = analyze(Halves(), (torch.rand(1, 3, 8, 8),))
    widths = {name: group.width for name, group in graph.groups.items() if name.startswith("enter")}
    assert widths == {"enter": 5, "enter#2": 3}


def test_frozen_groups_say_why():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softmax(1), nn.Conv2d(4, 2, 1))
    reasons = {name: group.reason for name, group in analyze(model, (torch.rand(1, 3, 8, 8),)).groups.items()}
    assert reasons == {
        "0": "is normalized by softmax",
        "2": "has no consumer: no layer reads its channels; it is an output of the model",
    }


def test_features_name_the_group_of_most_channels():
    class Joined(nn.Module):
        def __init__(self):
            super().__init__()
            self.parts, self.leave = Parts(), nn.Conv2d(10, 2, 1)
            self.parts.leave = nn.Identity()

        def forward(self, x):
            return self.leave(self.parts(x))

    graph = analyze(Joined(), (torch.rand(2, 3, 5, 5),))
    ((group, channels),) = graph.features["parts"]
    assert group == "parts.b"
    assert channels.tolist() == [-1] * 4 + [0, 1, 2, 3, 4, 5]
    assert graph.features["leave"][0][0] == "leave"
