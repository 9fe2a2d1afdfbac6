"""Training on two processes, started by torchrun, against one."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import autoprune
from autoprune.errors import TrainingError
from autoprune.training import TrainSettings, distributed, train

TESTS = Path(__file__).parent

# Rank 1 exits where it opens a file to write, or renames one, below the folder that is watched.
DRIVER = """
import os, sys
from pathlib import Path

folder = sys.argv[1]
if os.environ.get("RANK") == "1":
    def watch(event, args):
        writes = event == "open" and isinstance(args[1], str) and set(args[1]) & set("wax+")
        if (writes or event in ("os.rename", "os.mkdir")) and str(args[0]).startswith(folder):
            os._exit(9)
    sys.addaudithook(watch)
sys.path.insert(0, {tests!r})
import torch
from conftest import ToySplit, make_retinanet
from torch import nn
from torchvision.ops import FrozenBatchNorm2d
from autoprune.training import TrainSettings, distributed, train

class Counted(ToySplit):
    used = 0
    def get(self, index):
        self.used += 1
        return super().get(index)

model = make_retinanet(FrozenBatchNorm2d)
with distributed.process_group():
    assert distributed.world_size() == 2
    if distributed.rank() == 1:
        torch.nn.init.zeros_(model.head.classification_head.cls_logits.weight)  # rank 0's is what counts
    settings = TrainSettings(4, batch_size=3, learning_rate=1e-3, warmup=0)
    file = Path(folder) / "checkpoint.safetensors"
    split = Counted(count=6, size=64)
    result = train(model, split, settings, "cpu", checkpoint=file, checkpoint_interval_s=0)
    assert split.used == 4 * (2 if distributed.rank() == 0 else 1), split.used
    if distributed.rank() == 0:
        torch.save([dict(result.model.state_dict()), result.losses], Path(folder) / "result.pt")

    # a weight that one rank used, and one that none did
    weights = [nn.Parameter(torch.ones(2, 3)) for _ in range(3)]
    me = distributed.rank()
    weights[0].grad = torch.full((2, 3), 1.0 + me)
    if me == 1:
        weights[1].grad = torch.arange(6.0).view(3, 2).T
    total, uses = distributed.sum_gradients(weights, torch.tensor(2.0 + me))
    assert total == 5
    assert uses.tolist() == [2, 1, 0]
    assert torch.equal(weights[0].grad, torch.full((2, 3), 3.0))
    assert torch.equal(weights[1].grad, torch.tensor([[0.0, 2, 4], [1, 3, 5]]))
    assert torch.equal(weights[2].grad, torch.zeros(2, 3))
"""


def torchrun(script: Path, *arguments: object, processes: int = 2) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), str(script), *map(str, arguments)]
    environment = {**os.environ, "PYTHONPATH": str(Path(autoprune.__file__).parent.parent)}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_two_processes_train_as_one(tmp_path: Path, tiny_retinanet: Any, image_split: Any) -> None:
    """Three images per step, so the fractions differ; without batch statistics the sums are the same."""
    script, folder = tmp_path / "driver.py", tmp_path / "run"
    folder.mkdir()
    script.write_text(DRIVER.replace("{tests!r}", repr(str(TESTS))))
    completed = torchrun(script, folder)
    assert completed.returncode == 0, completed.stderr
    state, losses = torch.load(folder / "result.pt")
    settings = TrainSettings(4, batch_size=3, learning_rate=1e-3, warmup=0)
    start = tiny_retinanet(FrozenBatchNorm2d)
    alone = train(start, image_split, settings, "cpu")
    assert losses == pytest.approx(alone.losses, rel=1e-4)
    for name, value in alone.model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-3, atol=2e-5, msg=name)
    moved = max((value - start.state_dict()[n]).abs().max() for n, value in alone.model.state_dict().items())
    assert moved > 1e-3
    # one process can resume from what rank 0 wrote: it is finished
    resumed = train(start, image_split, settings, "cpu", checkpoint=folder / "checkpoint.safetensors")
    assert all(torch.equal(value, state[name]) for name, value in resumed.model.state_dict().items())


def test_one_process_needs_no_group() -> None:
    weight = nn.Parameter(torch.ones(2))
    loss = torch.tensor(3.0)
    with distributed.process_group():
        assert (distributed.rank(), distributed.world_size()) == (0, 1)
        assert distributed.sum_gradients([weight], loss) == (loss, None)
        distributed.barrier()
    model = nn.Linear(1, 1)
    assert distributed.broadcast_model(model, torch.device("cpu")) is model


def test_more_processes_than_images_are_refused(
    toy: Any, split: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "broadcast_model", lambda model, device: model)
    with pytest.raises(TrainingError, match="batch_size is 3 for 4 processes; raise it"):
        train(toy, split, TrainSettings(1, batch_size=3), "cpu")
