"""One file that a training run resumes from: tensors and progress together, so that they can't disagree.

The file is safetensors: the tensors of the state, and one line of JSON in the header. No pickle.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from autoprune.checkpoints.write import write_tensors
from autoprune.errors import RunError
from autoprune.training.settings import EARLIER

UNRECORDED = ("training data",)  # in the checkpoints of version 0.1.0


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training run after ``step`` steps.

    Attributes:
        run: what identifies the run: settings, data and start weights. JSON values.
        step: optimizer steps done.
        losses: loss of each step done.
        tensors: model, moving average and optimizer state, by name.
    """

    run: Mapping[str, Any]
    step: int
    losses: list[float]
    tensors: dict[str, torch.Tensor]

    def save(self, path: Path) -> None:
        """Writes the file atomically.

        Raises:
            RunError: the disk is full, or the folder can't be written to.
        """
        state = json.dumps({"run": self.run, "step": self.step, "losses": self.losses})
        # safetensors refuses tensors that share memory or are not contiguous
        tensors = {name: value.detach().cpu().contiguous().clone() for name, value in self.tensors.items()}
        write_tensors(path, tensors, {"training": state})

    @staticmethod
    def load(path: Path, run: Mapping[str, Any]) -> "Checkpoint | None":
        """Reads the file; ``None`` where there is none.

        Raises:
            RunError: the file can't be read, or is of a run other than ``run``.
        """
        if not path.exists():
            return None
        with _opened(path) as (file, state):
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recorded = {**EARLIER, **state["run"]}
        expected = {
            key: value
            for key, value in json.loads(json.dumps(run)).items()
            if key in recorded or key not in UNRECORDED
        }
        differing = [key for key in expected if recorded.get(key) != expected[key]]
        if differing:
            key = differing[0]
            raise RunError(
                f"the checkpoint {path} is of another run: {key} was {recorded.get(key)!r}, now "
                f"{expected[key]!r}; repeat the run's own settings, or delete the file"
            )
        return Checkpoint(state["run"], state["step"], state["losses"], tensors)


def recorded_run(path: Path) -> Mapping[str, Any]:
    """What a checkpoint says of its run: settings, data and start weights; empty where there is none.

    Raises:
        RunError: the file can't be read.
    """
    if not path.exists():
        return {}
    with _opened(path) as (_, state):
        return {**EARLIER, **state["run"]}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, dict[str, Any]]]:
    """The tensors' file, and the line of JSON in its header.

    Raises:
        RunError: the file can't be read.
    """
    try:
        with safe_open(path, framework="pt") as file:
            yield file, json.loads(file.metadata()["training"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise RunError(
            f"cannot read the checkpoint {path}: {error}; delete it to train from the start"
        ) from error
