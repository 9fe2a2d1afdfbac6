from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from autoprune.errors import RunError
from autoprune.training import TrainSettings, train
from autoprune.training.checkpoint import Checkpoint

CPU = torch.device("cpu")
RUN = {"steps": 9, "learning_rate": 0.1, "bf16": None}
STATE = Checkpoint(
    RUN,
    step=2,
    losses=[0.1, 2.5e-300],
    tensors={
        "weight": torch.arange(6.0).view(2, 3),
        "transposed": torch.arange(6.0).view(2, 3).T,
        "half": torch.tensor(0.5, dtype=torch.bfloat16),
        "count": torch.tensor(3),
    },
)


def test_a_checkpoint_is_read_back_exactly(tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    assert Checkpoint.load(file, RUN) is None
    shared = STATE.tensors["weight"]
    replace(STATE, tensors={**STATE.tensors, "same": shared, "part": shared[1:]}).save(file)
    loaded = Checkpoint.load(file, RUN)
    assert loaded is not None
    assert (loaded.run, loaded.step, loaded.losses) == (RUN, 2, [0.1, 2.5e-300])
    expected = {**STATE.tensors, "same": shared, "part": shared[1:]}
    assert loaded.tensors.keys() == expected.keys()
    for name, value in loaded.tensors.items():
        assert value.dtype == expected[name].dtype
        assert torch.equal(value, expected[name])


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from safetensors import SafetensorError

    def full(tensors: Any, path: Path, metadata: Any) -> None:
        Path(path).write_bytes(b"half of it")
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    file = tmp_path / "checkpoint.safetensors"
    STATE.save(file)
    monkeypatch.setattr("autoprune.checkpoints.write.save_file", full)
    with pytest.raises(RunError, match=f"the disk is full: {file} was not written"):
        replace(STATE, step=3).save(file)
    loaded = Checkpoint.load(file, RUN)
    assert loaded is not None
    assert loaded.step == 2
    assert list(tmp_path.iterdir()) == [file]


def test_what_a_later_version_adds_to_a_run_is_no_other_run(tmp_path: Path) -> None:
    """A tuple is a list in JSON; keys that the checkpoint has beside those asked for do not matter."""
    file = tmp_path / "checkpoint.safetensors"
    replace(STATE, run={**RUN, "size": (3, 4), "extra": 1}).save(file)
    assert Checkpoint.load(file, {**RUN, "size": (3, 4)}) is not None
    with pytest.raises(RunError, match=r"steps was 9, now 8; repeat the run's own settings"):
        Checkpoint.load(file, {**RUN, "steps": 8})
    assert Checkpoint.load(file, {**RUN, "training data": "of which version 0.1.0 said nothing"}) is not None
    with pytest.raises(RunError, match="new was None, now 1"):
        Checkpoint.load(file, {**RUN, "new": 1})


def test_a_checkpoint_of_another_run_is_refused(toy: nn.Module, split: Any, tmp_path: Path) -> None:
    file = tmp_path / "checkpoint.safetensors"
    train(toy, split, TrainSettings(2, batch_size=2), CPU, checkpoint=file)
    with pytest.raises(RunError, match=r"learning_rate was 0\.0003, now 0\.1"):
        train(toy, split, TrainSettings(2, batch_size=2, learning_rate=0.1), CPU, checkpoint=file)
    split.images += 1
    with pytest.raises(RunError, match="training data was"):
        train(toy, split, TrainSettings(2, batch_size=2), CPU, checkpoint=file)
    split.images -= 1
    with torch.no_grad():
        toy.head.bias.add_(1)
    with pytest.raises(RunError, match="start weights was"):
        train(toy, split, TrainSettings(2, batch_size=2), CPU, checkpoint=file)
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match="delete it"):
        train(toy, split, TrainSettings(2, batch_size=2), CPU, checkpoint=file)
