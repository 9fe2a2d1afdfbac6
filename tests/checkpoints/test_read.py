"""Files that are no weights are named by their kind; nothing in a file is run; harmless classes are read."""

import argparse
import builtins
import collections
import datetime
import decimal
import gzip
import io
import os
import pathlib
import pickle
import types
import uuid
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as serialize
from torch import nn

from autoprune.checkpoints.read import read_checkpoint
from autoprune.errors import ModelError

from ..detectors.conftest import one_line

STATE = {"weight": torch.arange(12.0).reshape(4, 3, 1, 1), "bias": torch.ones(4)}


def saved(content, **options) -> bytes:
    file = io.BytesIO()
    torch.save(content, file, **options)
    return file.getvalue()


def zipped(**files) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return file.getvalue()


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935\nsize 178090079\n"
NOT_WEIGHTS = {
    "pointer": (POINTER, "git-lfs pointer", "git lfs pull"),
    "page": (b"\n<!DOCTYPE html><html><title>Sign in</title></html>", "web page", "download it again"),
    "page without a doctype": (b"<HTML><body>404</body>", "web page", "download it again"),
    "empty": (b"", "empty", "copy or download it again"),
    "zeros": (bytes(5000), "blank", "copy or download it again"),
    "text": (b"Entry not found\n", "text that begins with 'Entry not found'", "check --weights"),
    "error": (b'{"error": "no access"}', 'a text that begins with \'{"error"', "check --weights"),
    "minified": (b'{"data":{"a": 1}}', "a text that begins with", "check --weights"),
    "index": (b'{"metadata": {}, "weight_map": {"a": "b"}}', "index of weights in several files", "in one"),
    "gzip": (gzip.compress(saved(STATE)), "compressed", "unpack it"),
    "keras": (b"\x89HDF\r\n\x1a\n" + bytes(100), "HDF5", "state_dict"),
    "noise": (bytes(range(1, 128)) * 20 + b"\xff\xfe", "no known format", "state_dict"),
    "cut torch": (saved(STATE)[:-300], "cut off after", "copy or download it again"),
    "half a torch": (saved(STATE)[:700], "cut off after 700 bytes", "copy or download it again"),
    "cut safetensors": (serialize(STATE)[:-10], "cut off after", "copy or download it again"),
    "cut header": (serialize(STATE)[:30], "cut off after 30 bytes", "copy or download it again"),
    "cut legacy": (saved(STATE, _use_new_zipfile_serialization=False)[:-20], "cut off", "download it again"),
    "script": (zipped(net__code__a="", net__constants=""), "TorchScript archive", "eager model"),
    "archive": (zipped(readme="hello"), "zip archive that torch.save did not write", "unpack it"),
    "protocol": (saved(STATE, pickle_protocol=4), "another pickle protocol", "model.state_dict()"),
    "plain pickle": (
        pickle.dumps({"a": [1]}, protocol=2),
        "a pickle that torch.save did not write",
        "state_dict",
    ),
}


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".ckpt"])
@pytest.mark.parametrize("kind", NOT_WEIGHTS)
def test_a_file_that_is_no_weights_is_named_by_its_kind(tmp_path, kind, suffix):
    content, *messages = NOT_WEIGHTS[kind]
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    with pytest.raises(ModelError) as error:
        read_checkpoint(path)
    assert one_line(error).startswith(f"{path} holds no weights that can be read safely: it ")
    for message in messages:
        assert message in str(error.value)


def test_every_cut_of_a_file_is_refused_in_one_line(tmp_path):
    path = tmp_path / "w"
    for whole in (saved(STATE), serialize(STATE), saved(STATE, _use_new_zipfile_serialization=False)):
        for length in range(0, len(whole) - 1, 13):
            path.write_bytes(whole[:length])
            with pytest.raises(ModelError) as error:
                read_checkpoint(path)
            assert len(one_line(error)) < 400


@pytest.mark.parametrize("suffix", [".pt", ".safetensors", ".bin", ""])
@pytest.mark.parametrize(
    "content", [saved(STATE), serialize(STATE), saved(STATE, _use_new_zipfile_serialization=False)]
)
def test_the_content_decides_and_not_the_suffix(tmp_path, content, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    read = read_checkpoint(path)
    assert all(torch.equal(read[name], tensor) for name, tensor in STATE.items())


def test_a_folder_and_a_missing_file_are_refused(tmp_path):
    for path, message in ((tmp_path, "directory"), (tmp_path / "none.pt", "No such file")):
        with pytest.raises(ModelError, match=message) as error:
            read_checkpoint(path)
        assert "check --weights" in one_line(error)


# what a pickle may name


class Writes:
    """Writes a file once it is unpickled in the usual way."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (os.system, ("touch {}",), "posix.system"),
        (os.mkdir, ("{}",), "posix.mkdir"),
        (pathlib.Path.touch, (pathlib.Path("{}"),), "getattr"),
        (builtins.open, ("{}", "w"), "open"),
        (builtins.exec, ("open('{}', 'w')",), "exec"),
        (builtins.eval, ("open('{}', 'w')",), "eval"),
        (np.save, ("{}", 1), "numpy.save"),
        (torch.save, (1, "{}"), "torch.serialization.save"),
    ],
)
def test_code_in_a_pickle_is_not_run_and_is_named(tmp_path, function, arguments, name, legacy):
    trap = tmp_path / "written"
    filled = tuple(
        type(each)(str(each).format(trap)) if isinstance(each, (str, Path)) else each for each in arguments
    )
    path = tmp_path / "evil.pt"
    content = {"model": STATE, "args": argparse.Namespace(extra=Writes(function, *filled))}
    path.write_bytes(saved(content, _use_new_zipfile_serialization=not legacy))
    with pytest.raises(ModelError, match=rf"it needs `[\w.]*{name}`.*is not run.*state_dict"):
        read_checkpoint(path)
    assert os.listdir(tmp_path) == ["evil.pt"]


def test_the_trap_of_these_tests_works(tmp_path):
    torch.save(Writes(os.mkdir, str(tmp_path / "written")), tmp_path / "evil.pt")
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert (tmp_path / "written").exists()


def test_allowed_names_build_nothing_of_their_own(tmp_path):
    """A pickle may call what is allowed with any arguments: nothing of them is used."""
    torch.save(
        {
            "a": Writes(pathlib.PosixPath, "a", "b"),
            "b": Writes(argparse.Namespace),
            "c": Writes(range, 10**15),
        },
        tmp_path / "w.pt",
    )
    read = read_checkpoint(tmp_path / "w.pt")
    assert {type(value).__name__ for value in read.values()} == {"Inert"}
    assert not any(isinstance(value, (Path, argparse.Namespace, range)) for value in read.values())


class Own:
    """A class of the trainer."""


def test_a_class_of_the_trainer_is_named(tmp_path):
    torch.save({"model": STATE, "config": Own()}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=r"needs `\S*test_read\.Own`"):
        read_checkpoint(tmp_path / "w.pt")
    torch.save(nn.Conv2d(3, 4, 1), tmp_path / "whole.pt")
    with pytest.raises(ModelError, match=r"needs `torch\.nn\.modules\.conv\.Conv2d`"):
        read_checkpoint(tmp_path / "whole.pt")


def harmless():
    optimizer = torch.optim.AdamW(nn.Linear(2, 2).parameters())
    return {
        "args": argparse.Namespace(lr=0.1, out=Path("runs/x"), device=torch.device("cpu")),
        "namespace": types.SimpleNamespace(a=1),
        "paths": [pathlib.PurePosixPath("a/b"), pathlib.PureWindowsPath("c:/d"), Path("e")],
        "numbers": [np.float64(0.5), np.float32(1), np.int64(3), np.bool_(True), np.str_("x"), np.uint8(1)],
        "arrays": [np.zeros(3), np.arange(4, dtype=np.int32).reshape(2, 2), np.array(["a"])],
        "dtype": [np.dtype("float32"), np.dtype([("a", "f4")])],
        "random": [np.random.get_state(), np.random.RandomState(0), np.random.default_rng(0)],
        "ordered": collections.OrderedDict(a=1),
        "default": collections.defaultdict(list, {"a": [1]}),
        "nested default": collections.defaultdict(dict, {"a": {"b": np.float32(1)}}),
        "deque": collections.deque([1, 2, 3], maxlen=3),
        "counter": collections.Counter("abc"),
        "dates": [
            datetime.datetime(2024, 1, 2, 3, tzinfo=datetime.UTC), datetime.date(2024, 1, 2),
            datetime.timedelta(1), datetime.time(1), datetime.datetime.now(),
        ],
        "sets": [{1, 2}, frozenset({3}), slice(1, 2), range(3)],
        "other": [decimal.Decimal("1.5"), uuid.UUID(int=3), 1j, b"x", bytearray(b"y")],
        "version": torch.torch_version.TorchVersion("2.8.0"),
        "optimizer": optimizer.state_dict(),
        "whole optimizer": optimizer,
        "whole scheduler": torch.optim.lr_scheduler.MultiStepLR(optimizer, [1, 2]),
        "scaler": torch.amp.GradScaler("cpu").state_dict(),
        "generator": torch.get_rng_state(),
    }  # fmt: skip


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("name", harmless())
def test_harmless_classes_beside_the_weights_are_read(tmp_path, name, legacy):
    content = {"model": STATE, name: harmless()[name], "last": 1}
    path = tmp_path / "w.pt"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    read = read_checkpoint(path)
    assert list(read) == ["model", name, "last"]
    assert all(torch.equal(read["model"][key], tensor) for key, tensor in STATE.items())


def test_a_damaged_tensor_in_an_archive_is_refused(tmp_path):
    path = tmp_path / "w.pt"
    data = bytearray(saved(STATE))
    place = data.index(STATE["weight"].numpy().tobytes())
    data[place + 5] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=r"it is damaged, `.*/data/\d` in it is not what was saved; copy"):
        read_checkpoint(path)
    torch.serialization.set_crc32_options(False)
    try:
        path.write_bytes(saved(STATE))
    finally:
        torch.serialization.set_crc32_options(True)
    assert torch.equal(read_checkpoint(path)["weight"], STATE["weight"])


def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "w.pt"
    os.mkfifo(path)
    with pytest.raises(ModelError, match="it is a pipe or device, not a file; check --weights"):
        read_checkpoint(path)
