"""Prefixes under which tensors lie, against sets that are small enough to see."""

import pytest
import torch

from autoprune.checkpoints.prefixes import (
    CheckpointTensors,
    dotted_prefix,
    is_counter,
    shared_length,
    tied_names,
    without_wrappers,
)
from autoprune.errors import ModelError

ONE, TWO = torch.ones(1), torch.ones(2)
MODEL = {"a.weight": torch.ones(1), "a.bias": torch.zeros(1), "b.weight": torch.ones(2)}
NAMES = {name: name for name in MODEL}


def at(*prefixes):
    return {f"{prefix}{name}": tensor for prefix in prefixes for name, tensor in MODEL.items()}


@pytest.mark.parametrize(
    ("content", "prefixes"),
    [
        (MODEL, {""}),
        (at("x."), {"x."}),
        ({"x": at("y.", "z."), "w": MODEL}, {"x.y.", "x.z.", "w."}),
        (at("own_"), {"own_"}),
        ([{"a": {"weight": ONE, "bias": ONE}, "b": {"weight": TWO}}], {"0."}),
        ({**at("x."), "y.a.weight": ONE}, {"x."}),
        ({"x.a.weight": ONE, "x.a.bias": ONE}, set()),
        ({"x.a.weight": ONE, "y.a.bias": ONE, "x.b.weight": TWO}, set()),
        ({"weight": ONE, "bias": ONE}, set()),
    ],
)
def test_prefixes_that_fit(content, prefixes):
    assert set(CheckpointTensors(content).fitting(NAMES, MODEL)) == prefixes


def test_the_nearest_prefix_has_the_most_tensors():
    tensors = CheckpointTensors({"x": {"a.weight": ONE}, "y": {"a.weight": ONE, "b.weight": TWO, "c": ONE}})
    assert tensors.nearest(NAMES) == "y."
    assert tensors.below("y.", NAMES) == ({"a.weight": ONE, "b.weight": TWO, "c": ONE}, [])
    assert CheckpointTensors({"q": ONE}).nearest(NAMES) == ""
    assert CheckpointTensors({"q": ONE}).below("", NAMES) == ({"q": ONE}, [])


def test_what_is_left_below_a_key_is_all_that_there_is():
    tensors = CheckpointTensors({"x": MODEL, "y": {"z": {"q.other": ONE}}})
    tensors.only("z", "w.pt")
    assert list(tensors.paths) == list(tensors.holders) == ["y.z.q.other"]
    assert tensors.fitting(NAMES, MODEL) == []
    with pytest.raises(ModelError, match="no tensors under `x`, but under y;"):
        tensors.only("x", "w.pt")


def test_a_tensor_with_and_without_a_wrapper_stays_two():
    assert set(CheckpointTensors({"a": ONE, "_orig_mod.a": TWO}).paths) == {"a", "_orig_mod.a"}


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_names_of_one_tensor(device):
    shared = torch.rand(3, device=device)
    model = {
        "a": shared,
        "b": shared.detach(),
        "c": shared.clone(),
        "d": shared[:2],
        "e": torch.ones(0, device=device),
        "f": torch.ones(0, device=device),
    }
    assert tied_names({name: name for name in model}, model) == {"a": ["b"], "b": ["a"]}


@pytest.mark.parametrize(
    ("names", "prefix"),
    [(["m.a.x", "m.a.y"], "m.a."), (["m.ab", "m.ac"], "m."), (["a", "b"], ""), (["m.a"], "m."), ([], "")],
)
def test_the_prefix_of_all_names(names, prefix):
    assert dotted_prefix(names) == prefix


def test_parts_of_names():
    assert without_wrappers("module._orig_mod.a._fsdp_wrapped_module.b") == "module.a.b"
    assert without_wrappers("my_orig_mod.a") == "my_orig_mod.a"
    assert shared_length([["a", "b"], ["a", "c"]]) == shared_length(["ab", "ac"]) == 1
    assert is_counter("bn.num_batches_tracked")
    assert not is_counter("bn.weight")
