"""Names of classes in the weights of several origins."""

import pytest
import torch
from safetensors.torch import save_file

from autoprune.detectors.class_names import class_names, header_of
from autoprune.detectors.weights import load_state, save_state

STATE = {"weight": torch.zeros(2)}
ABC = {1: "a", 2: "b", 3: "c"}


def test_what_is_written_is_read_and_does_not_change_the_weights(tmp_path):
    file = tmp_path / "model.safetensors"
    for names in (ABC, {0: "a", 1: "b", 2: "c"}, {3: "only"}):
        save_state(STATE, file, metadata=header_of(names))
        assert class_names(str(file), "x", 4) == names
        assert load_state(file).keys() == STATE.keys()
    assert class_names(str(file), "x", 3) == {}, "label 3 is beyond the head"
    assert header_of({}) is None


@pytest.mark.parametrize(
    "content",
    [
        {"names": ["a", "b", "c"]},
        {"classes": ["__background__", "a", "b", "c"]},
        {"class_names": ("background", "a", "b", "c")},
        {"names": {0: "a", 1: "b", 2: "c"}},
        {"names": {1: "a", 2: "b", 3: "c"}},
        {"id2label": {"1": "a", "2": "b", "3": "c"}},
        {"labels": {"a": 1, "b": 2, "c": 3}},
        {"categories": [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 3, "name": "c"}]},
        {"meta": {"CLASSES": ("a", "b", "c")}},
        {"meta": {"dataset_meta": {"classes": ["a", "b", "c"]}}},
    ],
)
def test_names_in_checkpoints(tmp_path, content):
    file = tmp_path / "model.pt"
    torch.save({"model": STATE, **content}, file)
    assert class_names(str(file), "x", 4) == ABC


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"names": ["a"]},
        {"names": [1, 2, 3]},
        {"names": {"a": "b"}},
        {"names": 3},
        {"names": []},
        {"meta": 1},
    ],
)
def test_checkpoints_without_names_that_fit(tmp_path, content):
    file = tmp_path / "model.pt"
    torch.save({"model": STATE, **content}, file)
    assert class_names(str(file), "x", 4) == {}


def test_files_that_hold_none(tmp_path):
    save_file(STATE, tmp_path / "plain.safetensors")
    save_file(STATE, tmp_path / "other.safetensors", metadata={"labels": "no JSON"})
    (tmp_path / "broken.safetensors").write_bytes(b"\xff" * 20)
    (tmp_path / "empty.safetensors").touch()
    (tmp_path / "broken.pt").write_bytes(b"nothing")
    for file in tmp_path.iterdir():
        assert class_names(str(file), "x", 4) == {}
    assert class_names(None, "x", 4) == {}
    assert class_names("no such weights", "retinanet_resnet50_fpn", 91) == {}


def test_torchvisions_weights_name_cocos_classes():
    names = class_names("COCO_V1", "retinanet_resnet50_fpn", 91)
    assert (names[1], names[90], len(names)) == ("person", "toothbrush", 80)
