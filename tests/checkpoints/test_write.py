"""Tensors come back exactly, and a full disk is one line and leaves the file before, whoever writes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from autoprune.checkpoints.write import write_tensors
from autoprune.errors import RunError


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


# All that write tensors, each in a process whose files may not grow beyond 64 KiB, as on a full disk.
WRITERS = {
    "checkpoint": "from autoprune.training.checkpoint import Checkpoint\n"
    "Checkpoint({}, 1, [], TENSORS).save(PATH)",
    "scores": "from autoprune.importance.cache import save\n"
    "save(PATH, 'taylor', 'key', {'a': TENSORS['a'].numpy()})",
    "weights": "from autoprune.detectors import save_state; save_state(TENSORS, PATH)",
    "program": """
from torch import nn
from autoprune.runtimes import torch_export
class Model(nn.Linear):
    class frame:
        height = width = 256
        def to_json():
            return "{}"
torch_export.write_program(Model(256, 256), PATH)""",
}
LIMITED = """
import resource, signal, sys
from pathlib import Path
import torch
from autoprune.errors import RunError
PATH, TENSORS = Path(sys.argv[1]), {"a": torch.zeros(100_000)}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
try:
"""


@pytest.mark.parametrize("writer", WRITERS)
def test_every_writer_says_what_the_system_refused_and_leaves_nothing(writer: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    body = "\n".join(f"    {line}" for line in WRITERS[writer].splitlines())
    script = LIMITED + body + "\nexcept RunError as error:\n    print(error)"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"cannot write {path}: "), done.stdout  # EFBIG
    assert "too large" in done.stdout
    assert os.listdir(tmp_path) == []
