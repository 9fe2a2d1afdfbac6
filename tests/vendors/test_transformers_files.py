import json
import os
import pickle
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("transformers")

from huggingface_hub import constants
from safetensors.torch import load_file, save_file

from autoprune.config import make_config
from autoprune.detectors import load_dense
from autoprune.errors import ModelError
from autoprune.vendors import vendor_of

from .transformers_models import write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rtdetr") / "tiny"
    write_folder(folder, "rt_detr")
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    return tmp_path / "copy"


def state(folder: Path) -> dict[str, torch.Tensor]:
    model, _ = load_dense(f"transformers:{folder}", weights=folder)
    return model.state_dict()


def refused(folder: Path, message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        load_dense(f"transformers:{folder}", weights=folder)
    assert "\n" not in str(caught.value)


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_the_weights_of_a_folder_are_taken_without_being_named(folder: Path) -> None:
    assert make_config(model=f"transformers:{folder}").weights == str(folder)


def test_parts_with_an_index_are_read_as_one(folder: Path, copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    names = sorted(tensors)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, own in parts.items():
        save_file({name: tensors[name] for name in own}, copy / file)
    (copy / "model.safetensors").unlink()
    index = {"weight_map": {name: file for file, own in parts.items() for name in own}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    assert same(state(copy), state(folder))
    (copy / "model-00002-of-00002.safetensors").unlink()
    refused(copy, "cannot read weights .*00002-of-00002")
    index["weight_map"][names[0]] = "../model.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(copy, "names '../model.safetensors', which is not in its folder")


def test_a_pickled_state_dict_is_read_without_its_code(folder: Path, copy: Path, tmp_path: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    torch.save(tensors, copy / "pytorch_model.bin")
    assert make_config(model=f"transformers:{copy}").weights == str(copy)
    assert same(state(copy), state(folder))

    class Harmful:
        def __reduce__(self) -> Any:
            return (os.system, (f"touch {tmp_path / 'ran'}",))

    torch.save({**tensors, "more": Harmful()}, copy / "pytorch_model.bin")
    refused(copy, "code that a file names is not run")
    (copy / "pytorch_model.bin").write_bytes(pickle.dumps(Harmful()))
    refused(copy, "no weights that can be read safely")
    assert not (tmp_path / "ran").exists()


def test_names_of_this_version_and_of_earlier_ones_are_known(folder: Path, copy: Path) -> None:
    own = {name.removeprefix("vendor."): tensor for name, tensor in state(folder).items()}
    assert own.keys() != load_file(copy / "model.safetensors").keys(), "the vendor writes earlier names"
    save_file(own, copy / "model.safetensors", metadata={"format": "pt"})
    assert same(state(copy), state(folder))


def test_weights_that_do_not_fit_their_config_are_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "encoder_ffn_dim": 40}))
    refused(copy, r"not those of its config.json: \d+ keys differ: .* is \[24\], the model's \[40\]")


def test_missing_and_damaged_files_are_named(copy: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="names a file; give its folder"):
        load_dense(f"transformers:{copy / 'model.safetensors'}")
    (copy / "model.safetensors").unlink()
    refused(copy, "holds no weights; it needs model.safetensors or pytorch_model.bin")
    (copy / "preprocessor_config.json").write_text("{")
    with pytest.raises(ModelError, match=r"preprocessor_config.json is not JSON"):
        load_dense(f"transformers:{copy}", weights=copy)
    (copy / "preprocessor_config.json").unlink()
    (copy / "config.json").write_text("[]")
    refused(copy, "must hold a JSON object, and holds a list")
    (copy / "config.json").unlink()
    refused(copy, "holds no config.json")
    with pytest.raises(ModelError, match=r"no such folder, and no such model in .*"):
        load_dense("transformers:nowhere")


def test_a_pruned_detector_is_no_dense_one(copy: Path) -> None:
    (copy / "policy.yaml").write_text("format: 1\n")
    refused(copy, "holds a pruned detector, and a dense one is needed here")


def test_a_model_of_the_hub_comes_from_the_local_cache_alone(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket

    def no_network(*arguments: Any, **more: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(socket, "create_connection", no_network)
    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    name = "transformers:someone/tiny"
    with pytest.raises(ModelError, match="or fetch it with `hf download someone/tiny` first"):
        load_dense(name)
    with pytest.raises(ModelError, match="or fetch it with `hf download someone/tiny` first"):
        load_dense(name, weights="someone/tiny")
    home = tmp_path / "models--someone--tiny"
    shutil.copytree(folder, home / "snapshots" / "abc")
    (home / "refs").mkdir()
    (home / "refs" / "main").write_text("abc")
    config = make_config(model=name)
    assert config.weights == "someone/tiny"
    model, spec = load_dense(name, weights=config.weights)
    assert same(model.state_dict(), state(folder))
    assert spec.name == "transformers:tiny"
    vendor, source = vendor_of(spec.name)  # the policy's name, whose source is gone
    assert vendor.describe(source, spec.arguments).arguments == spec.arguments


def test_what_breaks_the_vendors_code_is_said_of_the_folder(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "backbone_config": {"model_type": "bert"}}))
    refused(copy, r"can't be made: \w+: .*; check .*config.json")


def test_an_activation_that_is_none_is_said_of_its_file_without_weights_too(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    backbone = {**config["backbone_config"], "hidden_act": "foo"}
    for more, field in (
        ({"activation_function": "foo"}, "activation_function"),
        ({"backbone_config": backbone}, "backbone_config.hidden_act"),
    ):
        (copy / "config.json").write_text(json.dumps({**config, **more}))
        with pytest.raises(
            ModelError, match=f"^{copy}/config.json: `{field}` is 'foo', which is no activation"
        ):
            load_dense(f"transformers:{copy}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"resample": 3}, ": `resample` is 3, and only 2"),
        ({"do_normalize": True, "image_mean": [0.5]}, ": .* image_mean must hold three"),
        ({"rescale_factor": "x"}, " holds no valid settings .*'x'"),
        ({"image_processor_type": 5}, ": the image processor 5 is none of"),
        ({"size": None}, ": `size` holds nothing; give height and width"),
        ({"size": {"height": True, "width": 64}}, " holds no valid .*True, which is no number of pixels"),
    ],
)
def test_what_is_wrong_with_the_preprocessing_is_said_of_its_file(
    copy: Path, content: dict[str, Any], message: str
) -> None:
    (copy / "preprocessor_config.json").write_text(json.dumps(content))
    refused(copy, f"^{re.escape(str(copy))}/preprocessor_config.json{message}")


def test_complex_numbers_are_refused_by_their_tensor(copy: Path) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 4)
    save_file({**tensors, name: tensors[name].to(torch.complex64)}, copy / "model.safetensors")
    refused(copy, f"model.safetensors: `{re.escape(name)}` holds complex numbers")


@pytest.mark.parametrize("kind", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused_by_their_tensor(copy: Path, kind: torch.dtype) -> None:
    tensors = load_file(copy / "model.safetensors")
    name = next(name for name, tensor in tensors.items() if tensor.dim() == 4)
    save_file({**tensors, name: tensors[name].to(kind)}, copy / "model.safetensors")
    refused(copy, f"{re.escape(name)}.* (holds whole numbers|holds float8_e4m3fn numbers)")


def test_a_config_of_quantized_weights_is_refused(copy: Path) -> None:
    config = json.loads((copy / "config.json").read_text())
    for value in (None, {}):  # as some versions write it where nothing is quantized
        (copy / "config.json").write_text(json.dumps({**config, "quantization_config": value}))
        load_dense(f"transformers:{copy}", weights=copy)
    quantized = {"quant_method": "bitsandbytes", "load_in_8bit": True}
    (copy / "config.json").write_text(json.dumps({**config, "quantization_config": quantized}))
    refused(copy, "config.json has a `quantization_config`: its weights are quantized; give")
