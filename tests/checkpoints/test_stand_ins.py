"""Stand-ins hold what they replace: items of dicts and lists, and the numbers of arrays."""

import collections

import numpy as np
import pytest
import torch

from autoprune.checkpoints.read import read_checkpoint
from autoprune.checkpoints.stand_ins import STAND_INS, Array, DType


def again(tmp_path, content):
    torch.save(content, tmp_path / "w.pt")
    return read_checkpoint(tmp_path / "w.pt")


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", ">f4", "i8", ">i2", "u1", "?", "c8"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_an_array_becomes_a_tensor_of_the_same_numbers(tmp_path, dtype, order):
    array = np.asarray(np.arange(24).reshape(2, 3, 4) - 3 * (dtype != "u1"), order=order).astype(dtype)
    tensor = again(tmp_path, {"a": array})["a"].tensor()
    assert tensor.shape == (2, 3, 4)
    assert tensor.tolist() == array.tolist()


@pytest.mark.parametrize(
    "array", [np.array([None, 1]), np.array(["a"]), np.zeros(2, [("a", "f4")]), np.array(["2020"], "M8[Y]")]
)
def test_an_array_of_other_things_is_none(tmp_path, array):
    assert again(tmp_path, {"a": array})["a"].tensor() is None


def test_a_damaged_array_is_none():
    for state in [(1, (9,), DType("f4"), False, bytes(8)), (1, "x", DType("f4"), False, bytes(8)),
                  (1, (2,), DType("f4"), False, 5), (1, (2,), 3, False, bytes(8))]:  # fmt: skip
        array = Array()
        array.__setstate__(state)
        assert array.tensor() is None
    assert Array().tensor() is None


def test_dicts_and_lists_keep_their_items(tmp_path):
    content = {
        "default": collections.defaultdict(list, {"a": [1], "b": [2]}),
        "deque": collections.deque([1, 2, 3], maxlen=3),
    }
    assert again(tmp_path, content) == {"default": {"a": [1], "b": [2]}, "deque": [1, 2, 3]}


def test_no_stand_in_is_what_it_replaces():
    """What torch calls by a name of a file is defined here, and holds no code of another package."""
    assert {stand_in.__module__ for stand_in, _ in STAND_INS} == {"autoprune.checkpoints.stand_ins"}
    names = [name for _, name in STAND_INS]
    assert len(names) == len(set(names)) > 60
    assert not {"builtins.getattr", "builtins.eval", "posix.system", "builtins.print"} & set(names)
