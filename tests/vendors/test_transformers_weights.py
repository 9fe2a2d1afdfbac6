from pathlib import Path

import pytest
import torch

pytest.importorskip("transformers")

from safetensors.torch import load_file

from autoprune.errors import ModelError
from autoprune.vendors.transformers_weights import translated_for

from .transformers_models import write_folder


def test_tensors_get_the_names_of_the_model(tmp_path: Path) -> None:
    model = write_folder(tmp_path, "yolos")
    saved = load_file(tmp_path / "model.safetensors")
    wanted = model.state_dict()
    read = translated_for(model, saved, "the file")
    assert read.keys() == wanted.keys() != saved.keys()
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)


def test_tensors_of_another_model_are_refused(tmp_path: Path) -> None:
    model = write_folder(tmp_path, "yolos")
    saved = load_file(tmp_path / "model.safetensors")
    first = next(name for name, tensor in saved.items() if tensor.dim() == 2)
    lost = next(name for name in saved if name != first)
    other = {name: tensor[:-1] if name == first else tensor for name, tensor in saved.items() if name != lost}
    with pytest.raises(
        ModelError, match=r"the weights in the file: 2 keys differ: .* is missing; .* the model's"
    ):
        translated_for(model, other, "the file")


def test_how_many_batches_a_norm_saw_may_be_missing(tmp_path: Path) -> None:
    model = write_folder(tmp_path, "d_fine")
    saved = load_file(tmp_path / "model.safetensors")
    kept = {name: tensor for name, tensor in saved.items() if not name.endswith("num_batches_tracked")}
    assert len(kept) < len(saved)
    wanted, read = model.state_dict(), translated_for(model, kept, "the file")
    assert read.keys() == wanted.keys()
    assert all(torch.equal(read[name], wanted[name]) for name in wanted)
    norm = next(name for name in kept if name.endswith("running_mean"))
    with pytest.raises(ModelError, match=r"1 keys differ: .*running_mean is missing"):
        translated_for(model, {name: kept[name] for name in kept if name != norm}, "the file")
