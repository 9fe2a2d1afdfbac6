"""What differs is counted whole, and shown by the first few of each kind."""

import torch

from autoprune.checkpoints.differences import differences, listed


def test_names_shapes_and_kinds_of_numbers_are_told_apart():
    own = {
        "a": torch.zeros(2),
        "b": torch.zeros(2, 3),
        "c": torch.zeros(1, dtype=torch.int64),
        "d": torch.zeros(1),
    }
    file = {**own, "b": torch.zeros(3, 2), "c": torch.zeros(1), "e": torch.zeros(1)}
    del file["d"]
    assert differences(file, own) == (
        "4 keys differ: d is missing; e is not in the model; b is [3, 2], the model's [2, 3]; "
        "c holds real numbers, the model's whole"
    )
    assert differences(own, own) == ""


def test_of_each_kind_some_are_shown_and_all_are_counted():
    names = [f"n{number}" for number in range(9)]
    line = listed(names, ["x"], [], [], ["what a library says"])
    assert line.startswith("11 keys differ: n0 is missing; n1 is missing; ")
    assert line.endswith("n4 is missing; 4 more like that; x is not in the model; what a library says")
