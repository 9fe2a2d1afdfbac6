"""Weights in parts: what safetensors reads of each of them, together."""

import json

import pytest
import torch
from safetensors.torch import save_file

from autoprune.checkpoints.parts import index_of, read_object, read_parts, tensors_alone
from autoprune.errors import ModelError

WEIGHTS = {"a.weight": torch.rand(2, 3), "a.bias": torch.rand(2), "b.weight": torch.rand(4)}
PLACES = {"a.weight": "one.safetensors", "a.bias": "two.safetensors", "b.weight": "one.safetensors"}


@pytest.fixture
def index(tmp_path):
    for file in set(PLACES.values()):
        save_file({name: WEIGHTS[name] for name in PLACES if PLACES[name] == file}, tmp_path / file)
    path = index_of(tmp_path / "model.safetensors")
    assert path.name == "model.safetensors.index.json"
    path.write_text(json.dumps({"weight_map": PLACES}))
    return path


def test_parts_are_read_as_one(index):
    read = read_parts(index)
    assert read.keys() == WEIGHTS.keys()
    assert all(torch.equal(read[name], WEIGHTS[name]) for name in WEIGHTS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "names no files"),
        ({"weight_map": {}}, "names no files"),
        ({"weight_map": {"a.weight": "../one.safetensors"}}, "'../one.safetensors', which is not in its"),
        ({"weight_map": {"c.weight": "one.safetensors"}}, "`c.weight` of .* is in no file"),
        ({"weight_map": {"c.weight": "three.safetensors"}}, "cannot read weights .*three.safetensors"),
        ([], "must hold a JSON object, and holds a list"),
    ],
)
def test_an_index_that_does_not_fit_its_parts_is_refused(index, content, message):
    index.write_text(json.dumps(content))
    with pytest.raises(ModelError, match=message) as caught:
        read_parts(index)
    assert "\n" not in str(caught.value)


def test_what_is_no_json_is_said_to_be_none(index):
    index.write_text("{")
    with pytest.raises(ModelError, match="is not JSON"):
        read_object(index)
    index.unlink()
    with pytest.raises(ModelError, match=r"cannot read .*index\.json"):
        read_object(index)


def test_complex_numbers_are_refused_by_their_tensor(index):
    save_file({**WEIGHTS, "b.weight": torch.rand(4) + 1j}, index.parent / "one.safetensors")
    with pytest.raises(ModelError, match=r"one.safetensors: `b.weight` holds complex numbers"):
        read_parts(index)
    with pytest.raises(ModelError, match="holds more than tensors"):
        tensors_alone({"epoch": 3}, index)
