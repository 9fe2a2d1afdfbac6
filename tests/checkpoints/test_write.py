"""Tensors come back exactly, and a full disk is one line and leaves the file before, whoever writes."""

import os
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from torch import nn

from autoprune.checkpoints.write import write_tensors
from autoprune.detectors import save_state
from autoprune.errors import RunError
from autoprune.importance.cache import save as save_scores
from autoprune.runtimes.torch_export import write_program
from autoprune.training.checkpoint import Checkpoint


def test_tensors_and_texts_come_back(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([1, 2], dtype=torch.int64)}
    write_tensors(tmp_path / "x.safetensors", tensors, {"key": "text"})
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"key": "text"}
        assert set(file.keys()) == set(tensors)
        assert all(torch.equal(file.get_tensor(name), tensor) for name, tensor in tensors.items())


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=rf"^cannot write {tmp_path}/file/x: "):
        write_tensors(tmp_path / "file/x", {"a": torch.zeros(1)})


# All that write tensors.
WRITERS: dict[str, Callable[[Path], None]] = {
    "checkpoint": lambda path: Checkpoint({}, 1, [], LARGE).save(path),
    "scores": lambda path: save_scores(path, "taylor", "key", {"a": LARGE["a"].numpy()}),
    "weights": lambda path: save_state(LARGE, path),
    "program": lambda path: write_program(Framed(256, 256), path),
}
LARGE = {"a": torch.zeros(100_000)}


class Framed(nn.Linear):
    """Carries what a raw-heads model carries, whose program is written."""

    frame = SimpleNamespace(height=256, width=256, to_json=lambda: "{}")


@pytest.fixture
def full_disk() -> Iterator[None]:
    """Files may not grow beyond 64 KiB, which the system refuses as it refuses on a full disk."""
    before, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    signal.signal(signal.SIGXFSZ, before)


@pytest.mark.usefixtures("full_disk")
@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_what_the_system_refused_and_leaves_nothing(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with pytest.raises(RunError, match=rf"^cannot write {path}: it would be larger"):  # EFBIG
        WRITERS[writer](path)
    assert os.listdir(tmp_path) == []
