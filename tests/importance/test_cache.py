from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from autoprune.errors import RunError
from autoprune.importance import load, save, settings_hash

SCORES = {"a.b": np.array([0.1, 2.5, 1e-300]), "c": np.array([1.0])}


def same(left, right) -> bool:
    return left.keys() == right.keys() and all(left[name].tolist() == right[name].tolist() for name in left)


def test_scores_come_back_exactly_beside_those_of_other_criteria(tmp_path: Path) -> None:
    path = tmp_path / "importance.safetensors"
    save(path, "taylor", "k1", SCORES)
    save(path, "fisher", "k2", {"a.b": np.ones(3)})
    assert same(load(path, "taylor", "k1"), SCORES)
    assert same(load(path, "fisher"), {"a.b": np.ones(3)})
    assert load(path, "l2") is None
    assert load(tmp_path / "other", "taylor") is None


def test_scores_of_other_settings_are_not_there(tmp_path: Path) -> None:
    path = tmp_path / "importance.safetensors"
    first, second = settings_hash(weights="w", images=8, seed=0), settings_hash(images=9, weights="w", seed=0)
    assert first != second
    assert first == settings_hash(seed=0, weights="w", images=8)
    save(path, "taylor", first, SCORES)
    assert load(path, "taylor", second) is None
    save(path, "taylor", second, SCORES)
    assert same(load(path, "taylor", second), SCORES)
    assert load(path, "taylor", first) is None


def test_a_broken_file_says_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "importance.safetensors"
    path.write_bytes(b"not a safetensors file")
    with pytest.raises(RunError, match="delete it"):
        load(path, "taylor")


@pytest.mark.parametrize(
    "tensor",
    [torch.tensor([0.1, torch.nan]).double(), torch.ones(2, 2).double(), torch.ones(3).bfloat16()],
    ids=["nan", "matrix", "bfloat16"],
)
def test_what_is_no_score_is_named_with_the_file(tmp_path: Path, tensor: torch.Tensor) -> None:
    path = tmp_path / "importance.safetensors"
    save_file({"taylor/a.b": tensor}, path, {"taylor": "k"})
    with pytest.raises(RunError, match=r"e\.safetensors can't be read .*taylor scores of a\.b.*; delete it"):
        load(path, "taylor", "k")
